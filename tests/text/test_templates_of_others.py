"""Every published template that can be had renders as transformers' `apply_chat_template` does."""

import copy
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ossia.errors import OssiaError
from ossia.text import Chat
from ossia.text.chat_template import ChatTemplate
from ossia.text.template import TemplateFormat
from tests.text.histories import Histories
from tests.text.replies import read

FOLDER = Path(__file__).parents[1] / "fixtures" / "templates"
TEMPLATES: dict[str, str] = {
    f"{file.name.removesuffix('.json.xz')} {name}": template
    for file in sorted(FOLDER.glob("*.json.xz"))
    for name, template in json.loads(lzma.decompress(file.read_bytes())).items()
}
# Of these families, and of those who train them; the others show that nothing is special to these.
OWN = [name for name in TEMPLATES if re.search("qwen[23]|gpt-?oss", name, re.IGNORECASE)]


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def theirs(qwen3_folder):
    return AutoTokenizer.from_pretrained(qwen3_folder)


def render(ours: TemplateFormat, messages: list[Any], tools: Any, prompt: bool) -> str | None:
    """Our text, None if refused."""
    try:
        text, breaker = ours.render_text(
            Chat.of(messages, tools=tools), add_generation_prompt=prompt
        )
    except OssiaError:
        return None
    return text.replace(breaker, "")


def render_theirs(
    theirs, template: str, messages: list[Any], tools: Any, prompt: bool
) -> str | None:
    """The text of transformers, None if it fails."""
    try:
        return theirs.apply_chat_template(
            copy.deepcopy(messages),
            tools=tools,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
            **SPECIAL,
        )
    except Exception:  # a template may fail in any way
        return None


def as_taken(messages: list[Any], forms: ChatTemplate) -> list[Any]:
    """The messages in the forms that the template takes."""
    messages = copy.deepcopy(messages)
    for message in messages:
        if not forms.takes_objects and forms.takes_strings:
            for call in message.get("tool_calls") or ():
                arguments = call["function"]["arguments"]
                call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        thought = message.get("reasoning_content")
        if thought and not forms.takes_reasoning and forms.splits_reasoning:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        if forms.takes_parts:
            message["content"] = [{"type": "text", "text": message["content"]}]
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_histories_render_as_in_transformers(name, theirs, qwen3_tokenizer):
    """Of the forms of arguments and content, transformers gets that which the template takes."""
    template = TEMPLATES[name]
    ours = TemplateFormat(template, qwen3_tokenizer, stop_ids=[], variables=SPECIAL)
    forms = ChatTemplate(template, "here", SPECIAL)
    histories = Histories(seed=12)
    for n in range(200 if name in OWN else 25):
        messages, tools = histories.draw()
        found = render(ours, messages, tools, n % 2 == 0)
        given = as_taken(messages, forms)
        assert found == render_theirs(theirs, template, given, tools, n % 2 == 0), (n, messages)


# Of these families the messages are given as they are.
@pytest.mark.parametrize("name", OWN)
def test_nothing_is_given_in_another_form(name):
    forms = ChatTemplate(TEMPLATES[name], "here", SPECIAL)
    assert not forms.takes_parts
    if "tool_calls" in TEMPLATES[name]:
        assert forms.takes_objects


def test_the_templates_of_these_families_are_among_them():
    assert len(OWN) >= 20
    assert {"trl qwen3_training", "trl gptoss_training", "llama.cpp Qwen3-Coder"} <= set(OWN)


@pytest.mark.parametrize("name", [name for name in OWN if "qwen3 " in f"{name} " or "2507" in name])
def test_arguments_in_a_string_stay_as_the_model_wrote_them(name, theirs, qwen3_tokenizer):
    ours = TemplateFormat(TEMPLATES[name], qwen3_tokenizer, stop_ids=[], variables=SPECIAL)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a":1,  "b": "<x>"}'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
    ]
    found = render(ours, messages, None, True)
    assert found == render_theirs(theirs, TEMPLATES[name], messages, None, True)
    assert '{"a":1,  "b": "<x>"}' in (found or "")


CODER = "llama.cpp Qwen3-Coder"
WRITE = {
    "type": "function",
    "function": {
        "name": "write",
        "description": "Writes a file.",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "lines": {"type": "array"},
                "mode": {"type": "integer"},
                "sure": {"type": "boolean"},
            },
        },
    },
}


def test_qwen3_coder_s_calls_are_read_as_its_template_writes_them(qwen3_tokenizer):
    ours = TemplateFormat(TEMPLATES[CODER], qwen3_tokenizer, stop_ids=[], variables=SPECIAL)
    assert ours.stop_ids == {qwen3_tokenizer.control["<|im_end|>"]}
    arguments = {"path": "a <b>.py", "lines": ["x = 1", "<y>"], "mode": 7, "sure": True}
    call = {"type": "function", "function": {"name": "write", "arguments": json.dumps(arguments)}}
    messages = [
        {"role": "user", "content": "Write."},
        {"role": "assistant", "content": "I do.", "tool_calls": [call]},
    ]
    chat = Chat.of(messages, tools=[WRITE])
    ((prompt, reply),) = ours.render_turns(chat)
    parser = ours.parser(prompt, chat.offered_tools)
    (said, text), (name, written) = read(parser, reply)
    assert (said, text, name) == ("final", "I do.", "call write")
    assert json.loads(written) == arguments
    following = Chat.of([*messages, {"role": "tool", "content": "done"}], tools=[WRITE])
    assert ours.render(following)[: len(prompt + reply)] == prompt + reply


def test_arguments_that_a_template_cannot_walk_through_are_named(qwen3_tokenizer):
    ours = TemplateFormat(TEMPLATES[CODER], qwen3_tokenizer, stop_ids=[], source="here")
    call = {"type": "function", "function": {"name": "write", "arguments": "{"}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(OssiaError, match=r"messages\[1\]\.tool_calls\[0\]: its arguments are not"):
        ours.render(Chat.of(messages))
    call["function"]["arguments"] = ""
    assert "write" in qwen3_tokenizer.decode(ours.render(Chat.of(messages)))
