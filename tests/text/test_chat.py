"""A chat is checked once, and no format ignores what it asks for."""

import datetime
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.text import Chat, Effort, Tokenizer, load_format
from ossia.text.chat import (
    ChatMessage,
    ResponseFormat,
    Role,
    ToolCall,
    ToolChoice,
    ToolDescription,
    ToolMode,
)

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather.", "parameters": {"type": "object"}},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "list", "schema": {"type": "array"}}}
NAMED = {"type": "function", "function": {"name": "weather"}}
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def formats(gpt_oss_folder, gpt_oss_tokenizer, qwen3_folder, qwen3_tokenizer, gpt2_folder):
    """Each kind of format by its name."""
    from ossia.text import load_tokenizer

    found = [
        load_format(gpt_oss_folder, gpt_oss_tokenizer),
        load_format(qwen3_folder, qwen3_tokenizer),
        load_format(gpt2_folder, load_tokenizer(gpt2_folder)),
    ]
    return {chat_format.name: chat_format for chat_format in found}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def test_a_request_becomes_values() -> None:
    chat = Chat.of(
        [
            {"role": "system", "content": [text_part("Be "), text_part("brief.")]},
            {"role": "user", "content": "Weather?", "name": "ada", "unknown": 1},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Look.",
                "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {"é": 1}}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ],
        tools=[TOOL],
        tool_choice=NAMED,
        response_format=SCHEMA,
        reasoning_effort="high",
        thinking=False,
        date="2026-11-28",
        instructions="Please.",
    )
    assert chat == Chat(
        (
            ChatMessage(Role.SYSTEM, "Be brief."),
            ChatMessage(Role.USER, "Weather?", name="ada"),
            ChatMessage(
                Role.ASSISTANT,
                reasoning="Look.",
                tool_calls=(ToolCall("weather", '{"é": 1}', "1"),),
            ),
            ChatMessage(Role.TOOL, "sunny", tool_call_id="1"),
        ),
        (ToolDescription("weather", "Weather.", {"type": "object"}),),
        ToolChoice(ToolMode.REQUIRED, ("weather",)),
        ResponseFormat("list", {"type": "array"}),
        Effort.HIGH,
        False,
        datetime.date(2026, 11, 28),
        "Please.",
    )


def test_a_chat_without_settings_has_the_defaults() -> None:
    assert Chat.of([]) == Chat(())
    assert Chat.of([], tool_choice=None, response_format={"type": "text"}) == Chat(())


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "wizard", "content": "x"}, r"messages\[0\]: role"),
        ({"role": ["user"], "content": "x"}, r"messages\[0\]: role"),
        ({"role": "user", "content": 3}, r"messages\[0\]\.content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"content\[0\].*image_url"),
        ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\]"),
        ("hello", r"messages\[0\]: a message is an object"),
    ],
)
def test_a_bad_message_is_named(message: Any, complaint: str) -> None:
    with pytest.raises(OssiaError, match=complaint):
        Chat.of([message])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tools": [{"type": "function"}]}, r"tools\[0\]"),
        ({"tools": "weather"}, "tools: must be a list"),
        ({"tools": TOOL}, "tools: must be a list"),
        ({"tool_choice": "always"}, "tool_choice: must be auto, none, required"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": NAMED}, "there is no tool 'weather'"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: .*allowed_to"),
        ({"response_format": "json_object"}, "response_format: must be an object"),
        ({"response_format": {"type": "xml"}}, "response_format: .*xml"),
        ({"response_format": {"type": "json_schema"}}, "response_format: .*json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "needs a name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}},
            "json_schema.schema: must be a JSON schema",
        ),
        ({"reasoning_effort": "extreme"}, "low, medium, high"),
        ({"date": "yesterday"}, "YYYY-MM-DD"),
        ({"date": 20260101}, "YYYY-MM-DD"),
        ({"instructions": 1}, "instructions: must be a string"),
    ],
)
def test_a_bad_setting_is_named(settings: Any, complaint: str) -> None:
    with pytest.raises(OssiaError, match=complaint):
        Chat.of(HELLO, **settings)


@pytest.mark.parametrize("messages", ["hello", HELLO[0], None, 1])
def test_messages_are_a_list(messages: Any) -> None:
    with pytest.raises(OssiaError, match="messages: must be a list"):
        Chat.of(messages)


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("settings", [{"tool_choice": "required"}, {}])
def test_plain_text_refuses_tools(formats: dict, settings: Any) -> None:
    chat = Chat.of([*HELLO, {"role": "assistant", "content": "Hello"}], tools=[TOOL], **settings)
    for render in (formats["plain"].render, formats["plain"].render_turns):
        with pytest.raises(OssiaError, match="tools: this model"):
            render(chat)


def test_a_template_gets_instructions_in_the_system_message(formats: dict) -> None:
    render = formats["template"].render
    alone = Chat.of([{"role": "system", "content": "Be brief."}, *HELLO])
    assert render(Chat.of(HELLO, instructions="Be brief.")) == render(alone)
    for role in ("system", "developer"):
        first = {"role": role, "content": "Speak French."}
        merged = {"role": "system", "content": "Be brief.\n\nSpeak French."}
        both = Chat.of([first, *HELLO], instructions="Be brief.")
        assert render(both) == render(Chat.of([merged, *HELLO]))


def test_plain_text_begins_with_the_instructions(formats: dict, gpt2_tokenizer: Tokenizer) -> None:
    chat = Chat.of(HELLO, instructions="A talk.", tools=[TOOL], tool_choice="none")
    assert gpt2_tokenizer.decode(formats["plain"].render(chat)) == "A talk.\nHi"


def test_a_template_is_not_told_of_tools_that_must_not_be_called(formats: dict) -> None:
    render = formats["template"].render
    chat = Chat.of(HELLO, tools=[TOOL], tool_choice="none")
    assert render(chat) == render(Chat.of(HELLO))


# ------------------------------------------------------------------ cost


class Counted(dict):
    """A message that counts how often it is checked."""

    checks = 0

    def get(self, key: str, default: Any = None) -> Any:
        Counted.checks += key == "role"
        return super().get(key, default)


def turns(count: int) -> list[dict]:
    """A conversation of so many turns, each with reasoning and a call."""
    function = {"name": "weather", "arguments": "{}"}
    turn = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning": "Look.", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "reasoning": "Good.", "content": "It is sunny."},
    ]
    return [Counted(message) for _ in range(count) for message in turn]


@pytest.mark.parametrize("name", ["harmony", "template"])
def test_each_message_is_checked_once_however_many_replies_are_rendered(
    formats: dict, name: str
) -> None:
    for count in (1, 20):
        Counted.checks = 0
        rendered = formats[name].render_turns(Chat.of(turns(count), tools=[TOOL]))
        assert len(rendered) == 2 * count
        assert Counted.checks == 4 * count


def test_harmony_s_turns_cost_what_their_messages_cost(
    formats: dict, gpt_oss_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts encoded grow with the messages, not with their square; the prompts are `render`'s."""
    encoded: list[str] = []
    encode = gpt_oss_tokenizer.encode

    def counting(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)

    def cost(count: int) -> int:
        encoded.clear()
        formats["harmony"].render_turns(Chat.of(turns(count), tools=[TOOL]))
        return len(encoded)

    with monkeypatch.context() as counted:
        counted.setattr(gpt_oss_tokenizer, "encode", counting)
        one, two, ten = cost(1), cost(2), cost(10)
    assert ten - one == 9 * (two - one)

    settings: Any = {"tools": [TOOL], "date": "2026-11-28"}
    messages = turns(3)
    prompts = [p for p, _ in formats["harmony"].render_turns(Chat.of(messages, **settings))]
    replies = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    expected = [formats["harmony"].render(Chat.of(messages[:n], **settings)) for n in replies]
    assert prompts == expected


@pytest.mark.parametrize("name", ["harmony", "template"])
def test_a_format_renders_messages_as_the_chat_made_of_them(formats: dict, name: str) -> None:
    settings: Any = {"tools": [TOOL], "date": "2026-11-28"}
    chat = Chat.of(turns(2), **settings)
    assert formats[name].render(turns(2), **settings) == formats[name].render(chat)
    with pytest.raises(OssiaError, match="tools: a Chat has its settings already"):
        formats[name].render(chat, tools=[TOOL])
