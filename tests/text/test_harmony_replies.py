"""Replies of gpt-oss as events: harmony as it is parsed, and no text lost if it is malformed."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from ossia.text import Tokenizer, load_format, load_tokenizer
from ossia.text.chat import Chat, Role
from ossia.text.events import Channel, TextDelta
from ossia.text.harmony.format import HarmonyFormat
from ossia.text.harmony.grammar import ControlToken
from ossia.text.harmony.parse import ReplyParser, parse
from tests.text.replies import read, read_text

CHANNEL = {"analysis": "reasoning", "commentary": "preamble", "final": "final", None: "final"}


@pytest.mark.parametrize("header", ["<|channel|>", "<|channel|>commentary to="])
@pytest.mark.parametrize("character", ["x", " "])
def test_a_header_without_end_becomes_text(bytes_folder, header, character):
    """It is read again at each id, so that a long one would take time by its square."""
    tokenizer = load_tokenizer(bytes_folder)
    parser = ReplyParser(tokenizer)
    ids = tokenizer.encode_control(header) + tokenizer.encode(character * 2000)
    events = [event for id in ids for event in parser.push(id)]
    assert len(events) > 1000
    assert parser.malformed


def test_golden_completions_give_their_messages(gpt_oss_tokenizer, golden):
    """For the cases that are completions and that strict parsing accepts."""
    read_cases = 0
    for case in golden("harmony_parse")["cases"]:
        if case["role"] != "assistant" or "error" in case or "missing message" in case["name"]:
            continue
        expected: list[tuple[str, str]] = []
        for message in case["messages"]:
            text, recipient = message["content"][0]["text"], message.get("recipient")
            channel = CHANNEL[message.get("channel")]
            if recipient:
                expected.append((f"call {recipient.removeprefix('functions.')}", text))
            elif expected and expected[-1][0] == channel:
                expected.append((channel, f"{expected.pop()[1]}\n\n{text}"))
            else:
                expected.append((channel, text))
        parser = ReplyParser(gpt_oss_tokenizer)
        assert read(parser, case["ids"]) == expected, case["name"]
        assert not parser.malformed, case["name"]
        read_cases += 1
    assert read_cases == 13


MALFORMED = {
    "no message marker, then a stop": (
        "<|channel|>analysis thinking<|end|><|start|>assistant<|channel|>final<|message|>Hi",
        [("reasoning", "thinking"), ("final", "Hi")],
    ),
    "no message marker, a long text": (
        "<|channel|>final Hello there, how are you?<|return|>",
        [("final", "Hello there, how are you?")],
    ),
    "no message marker before code-like prose": (
        "<|channel|>analysis code is hard<|end|>",
        [("reasoning", "code is hard")],
    ),
    "no message marker before arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>',
        [("call f", '{"a": 1}')],
    ),
    "no header": ("Hello there", [("final", "Hello there")]),
    "no header, one word": ("Hello", [("final", "Hello")]),
    "no header, a word of harmony": ("final", [("final", "final")]),
    "no header, begins like one": (
        "user interfaces are hard: to=x is no header",
        [("final", "user interfaces are hard: to=x is no header")],
    ),
    "no channel": ("<|message|>Hello<|return|>", [("final", "Hello")]),
    "channel without its mark": (
        "analysis<|message|>Hm.<|end|><|start|>assistantfinal<|message|>Yes.<|return|>",
        [("reasoning", "Hm."), ("final", "Yes.")],
    ),
    "unknown channel": ("<|channel|>comment<|message|>Hello<|return|>", [("final", "Hello")]),
    "recipient without to=": (
        "<|channel|>commentary get_time <|constrain|>json<|message|>{}<|call|>",
        [("call get_time", "{}")],
    ),
    "content type in place of a recipient": (
        "<|channel|>commentary json<|message|>{}<|end|>",
        [("preamble", "{}")],
    ),
    "no start after an end": (
        "<|channel|>analysis<|message|>Hm.<|end|>assistant<|channel|>final<|message|>Yes.",
        [("reasoning", "Hm."), ("final", "Yes.")],
    ),
    "text after the end": (
        "<|channel|>final<|message|>Yes.<|end|> And one more thing.<|end|>\n<|end|>",
        [("final", "Yes.\n\nAnd one more thing.")],
    ),
    "a second final message": (
        "<|channel|>final<|message|>Hi<|return|><|start|>assistant<|channel|>final<|message|>Again",
        [("final", "Hi\n\nAgain")],
    ),
    "no end before a start": (
        "<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Yes.",
        [("reasoning", "Hm."), ("final", "Yes.")],
    ),
    "no end before a channel": (
        "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes.",
        [("reasoning", "Hm."), ("final", "Yes.")],
    ),
    "two channels in one header": (
        "<|channel|>analysis<|channel|>final<|message|>Yes.",
        [("final", "Yes.")],
    ),
    "control tokens within a text": (
        "<|channel|>final<|message|>a<|message|>b<|constrain|>c<|reserved_200000|>d<|endoftext|>",
        [("final", "abcd")],
    ),
    "truncated arguments": (
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city": "San',
        [("call f", '{"city": "San')],
    ),
    "code as arguments": (
        "<|channel|>analysis to=python code<|message|>import math\nprint(math.pi)\n<|call|>",
        [("call python", "import math\nprint(math.pi)\n")],
    ),
    "content type before the channel": (
        " to=functions.f <|constrain|>json<|channel|>commentary<|message|>{}<|call|>",
        [("call f", "{}")],
    ),
    "a call without arguments": (
        "<|channel|>commentary to=functions.now <|constrain|>json<|call|>",
        [("call now", "")],
    ),
    "cut off in a header": ("<|channel|>final<|message|>Yes.<|end|><|start|>assis", None),
    "cut off after a channel": ("<|channel|>analysis", []),
    "a message to the user": (
        "<|channel|>commentary to=user<|message|>Hello<|end|>",
        [("preamble", "Hello")],
    ),
}


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory) -> Tokenizer:
    """A vocabulary of bytes and harmony's control tokens: a character takes one token or more."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*ControlToken, "<|endoftext|>", "<|reserved_200000|>"])
    folder = tmp_path_factory.mktemp("bytes")
    inner.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_any_vocabulary_with_the_control_tokens_speaks_harmony(
    byte_tokenizer, gpt_oss_folder, gpt_oss_tokenizer, tmp_path
):
    chat_format = load_format(tmp_path, byte_tokenizer)
    assert isinstance(chat_format, HarmonyFormat)
    messages = [{"role": "user", "content": "Grüße <|end|> 🚀"}]
    chat = Chat.of(messages, date="2025-08-05")
    large = load_format(gpt_oss_folder, gpt_oss_tokenizer).render(chat)
    small = chat_format.render(chat)
    assert byte_tokenizer.decode(small) == gpt_oss_tokenizer.decode(large)
    assert small.count(byte_tokenizer.control["<|end|>"]) == 2


@pytest.mark.parametrize("vocabulary", ["gpt_oss_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_replies_still_reach_the_user(name, vocabulary, request):
    text, expected = MALFORMED[name]
    tokenizer = request.getfixturevalue(vocabulary)
    parts = read_text(ReplyParser(tokenizer), tokenizer, text)
    if expected is None:
        assert parts[0][1].startswith("Yes.")
    else:
        assert parts == expected


@pytest.mark.parametrize(
    "name",
    [
        "no message marker, then a stop",
        "no message marker, a long text",
        "no header",
        "text after the end",
        "no end before a channel",
        "control tokens within a text",
        "a call without arguments",
    ],
)
def test_a_reply_that_breaks_the_rules_is_known_as_malformed(gpt_oss_tokenizer, name):
    parser = ReplyParser(gpt_oss_tokenizer)
    read_text(parser, gpt_oss_tokenizer, MALFORMED[name][0])
    assert parser.malformed


def test_each_id_has_the_channel_of_its_text(byte_tokenizer):
    parser = ReplyParser(byte_tokenizer)
    reply = (
        "<|channel|>analysis<|message|>ab<|end|><|start|>assistant<|channel|>final<|message|>é"
        "<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    )
    channels = []
    for id in byte_tokenizer.encode_control(reply):
        parser.push(id)
        channels.append(parser.channel)
    found = [channel for channel in channels if channel]
    assert found == [Channel.REASONING] * 2 + [Channel.FINAL] * 2
    assert [n for n, channel in enumerate(channels) if channel] == [10, 11, 30, 31]


def test_text_streams_as_it_comes(gpt_oss_tokenizer):
    parser = ReplyParser(gpt_oss_tokenizer)
    shown = []
    for id in gpt_oss_tokenizer.encode_control("Hello there<|end|>"):
        shown.append(parser.push(id))
    assert shown == [[], [TextDelta(Channel.FINAL, "Hello there")], []]


@settings(max_examples=300)
@given(data=st.data())
def test_no_word_is_lost_whatever_the_control_tokens_around_it(gpt_oss_tokenizer, data):
    """Words that occur in no header, between control tokens: each is shown once, in order."""
    control = st.sampled_from(sorted(gpt_oss_tokenizer.control))
    words = st.integers(0, 99).map(lambda n: f" <{n}> é世")
    pieces = data.draw(st.lists(control | words, max_size=12))
    parts = read_text(ReplyParser(gpt_oss_tokenizer), gpt_oss_tokenizer, "".join(pieces))
    shown = "".join(text for _, text in parts).split()
    assert shown == "".join(piece for piece in pieces if piece[0] == " ").split()


headers = st.sampled_from(
    [
        ("<|channel|>analysis", "reasoning"),
        ("<|channel|>final", "final"),
        ("<|channel|>commentary", "preamble"),
        ("<|channel|>commentary to=functions.f <|constrain|>json", "call f"),
        (" to=functions.f<|channel|>commentary <|constrain|>json", "call f"),
        ("<|channel|>analysis to=browser.search code", "call browser.search"),
    ]
)


@settings(max_examples=200)
@given(
    turns=st.lists(
        st.tuples(headers, st.text(st.sampled_from("a{}\n 世🚀<|"), min_size=1)), max_size=5
    )
)
def test_well_formed_replies_read_as_strict_parsing_reads_them(gpt_oss_tokenizer, turns):
    control = gpt_oss_tokenizer.encode_control
    ids: list[int] = []
    for n, ((header, _), text) in enumerate(turns):
        ids += control("<|start|>assistant" if n else "")
        ids += [*control(f"{header}<|message|>"), *gpt_oss_tokenizer.encode(text)]
        ids += control("<|end|>")
    messages = parse(ids, gpt_oss_tokenizer, Role.ASSISTANT) if turns else []
    assert [message.content[0] for message in messages] == [text for _, text in turns]
    parts = read(ReplyParser(gpt_oss_tokenizer), ids)
    shown, seen = "", set()
    for (_, kind), text in turns:
        again = kind in seen and not kind.startswith("call")
        shown += ("\n\n" if again else "") + text
        seen.add(kind)
    assert "".join(text for _, text in parts) == shown
    kinds = [kind for (_, kind), _ in turns]
    merged = [
        kind
        for n, kind in enumerate(kinds)
        if n == 0 or kind != kinds[n - 1] or kind.startswith("call")
    ]
    assert [name for name, _ in parts] == merged


def test_gpt_oss_speaks_harmony_even_beside_a_template(gpt_oss_folder, gpt_oss_tokenizer):
    assert (gpt_oss_folder / "chat_template.jinja").is_file()
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)
    assert isinstance(chat_format, HarmonyFormat)
    assert chat_format.stop_ids == {200002, 200012, 199999}
    prompt = chat_format.render(Chat.of([{"role": "user", "content": "Hi"}]))
    parts = read_text(
        chat_format.parser(prompt), gpt_oss_tokenizer, "<|channel|>final<|message|>Hi<|return|>"
    )
    assert parts == [("final", "Hi")]
