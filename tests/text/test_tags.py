"""Qwen3's replies as events: reasoning, answer and calls, and malformed output still shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.text.events import Channel
from ossia.text.tags import TagParser
from tests.text.replies import read, read_text

ARGUMENTS = '{"city": "Oakland", "days": {"n": 1}}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'

REPLIES = {
    "answer": ("Hello!<|im_end|>", [("final", "Hello!")]),
    "reasoning and answer": (
        "<think>\nA greeting.\n\nBe kind.\n</think>\n\nHello!\n<|im_end|>",
        [("reasoning", "A greeting.\n\nBe kind."), ("final", "Hello!\n")],
    ),
    "empty reasoning": ("<think>\n\n</think>\n\nHello!", [("final", "Hello!")]),
    "call": (CALL, [("call weather", ARGUMENTS)]),
    "text and two calls": (
        f"<think>\nHm.\n</think>\n\nLooking.\n{CALL}\n{CALL}<|im_end|>",
        [
            ("reasoning", "Hm."),
            ("final", "Looking."),
            ("call weather", ARGUMENTS),
            ("call weather", ARGUMENTS),
        ],
    ),
    "call without arguments": (
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [("call now", "{}")],
    ),
    "call with its keys the other way round": (
        '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
        [("call f", '{"a": 1}')],
    ),
    "arguments as a string": (
        r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>',
        [("call f", '{"a": 1}')],
    ),
    "call cut off in its arguments": (
        '<tool_call>\n{"name": "f", "arguments": {"city": "San',
        [("call f", '{"city": "San')],
    ),
    "call without its last brace": (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>',
        [("call f", '{"a": 1}\n')],
    ),
    "call cut off before its name": (
        '<tool_call>\n{"na',
        [("final", '<tool_call>\n{"na</tool_call>')],
    ),
    "call that is code": (
        "<tool_call>\nprint(1)\nprint(2)\n</tool_call>",
        [("final", "<tool_call>\nprint(1)\nprint(2)\n</tool_call>")],
    ),
    "call inside reasoning": (
        f"<think>\nI call it.\n{CALL}",
        [("reasoning", "I call it."), ("call weather", ARGUMENTS)],
    ),
    "reasoning that never ends": ("<think>\nHm, so", [("reasoning", "Hm, so")]),
    "an end without a beginning": ("Hello</think>\n\n there", [("final", "Hello there")]),
    "an end of no call": ("Hello</tool_call>", [("final", "Hello")]),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies(qwen3_tokenizer, name):
    text, expected = REPLIES[name]
    parser = TagParser(qwen3_tokenizer)
    assert read_text(parser, qwen3_tokenizer, text) == expected
    not_json = "cut off", "without its last brace", "that is code"
    assert parser.malformed == name.startswith(tuple(f"call {end}" for end in not_json))


def test_each_id_has_the_channel_of_its_text(qwen3_tokenizer):
    parser = TagParser(qwen3_tokenizer)
    channels = []
    for id in qwen3_tokenizer.encode_control(f"<think>No</think>Yes{CALL}"):
        parser.push(id)
        channels.append(parser.channel)
    assert channels[:4] == [None, Channel.REASONING, None, Channel.FINAL]
    assert set(channels[4:]) == {None}


def test_tags_in_ordinary_tokens_are_text(qwen3_tokenizer):
    text = "Write <think> and </think> around it."
    assert read(TagParser(qwen3_tokenizer), qwen3_tokenizer.encode(text)) == [("final", text)]


def test_arguments_stream_while_they_are_written(qwen3_tokenizer):
    parser = TagParser(qwen3_tokenizer)
    ids = qwen3_tokenizer.encode_control(CALL)
    events = [parser.push(id) for id in ids]
    first = next(n for n, found in enumerate(events) if found)
    assert first < len(ids) // 2
    assert sum(map(bool, events)) > 5


def test_a_prompt_with_reasoning_turned_off_begins_with_the_answer(qwen3_tokenizer):
    prompt = qwen3_tokenizer.encode_control("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    parser = TagParser(qwen3_tokenizer, prompt)
    assert read_text(parser, qwen3_tokenizer, "Hi") == [("final", "Hi")]


@settings(max_examples=200)
@given(data=st.data())
def test_no_word_is_lost_whatever_the_tags_around_it(qwen3_tokenizer, data):
    tags = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"])
    words = st.integers(0, 99).map(lambda n: f" w{n} é世\n")
    pieces = data.draw(st.lists(tags | words, max_size=12))
    parts = read_text(TagParser(qwen3_tokenizer), qwen3_tokenizer, "".join(pieces))
    shown = "".join(text for _, text in parts)
    for tag in ("<tool_call>", "</tool_call>"):
        shown = shown.replace(tag, " ")
    assert shown.split() == "".join(piece for piece in pieces if piece[0] == " ").split()
