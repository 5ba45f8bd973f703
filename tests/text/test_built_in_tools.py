"""Tools that gpt-oss was trained to call within its reasoning: as openai_harmony renders them."""

from __future__ import annotations

import pytest

from ossia.errors import OssiaError
from ossia.text import Chat, ToolDescription, ToolNamespace, load_format
from ossia.text.harmony.messages import IDENTITY
from ossia.tools.browser import Browser
from ossia.tools.toolset import Namespace

QUESTION = {"role": "user", "content": "What is 2**100?"}
CALL = {"id": "1", "function": {"name": "python", "arguments": "print(2**100)"}}
CALLED = [
    QUESTION,
    {"role": "assistant", "reasoning": "Use Python.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "1267650600228229401496703205376\n"},
]


@pytest.fixture(scope="module")
def case(golden):
    """case(name) is the rendered text, and the tools of its system message, by name."""
    cases = {case["name"]: case for case in golden("harmony_render")["cases"]}

    def find(name):
        content = cases[name]["conversation"]["messages"][0]["content"][0]
        assert content["model_identity"] == IDENTITY
        return cases[name]["text"], content["tools"]

    return find


@pytest.fixture(scope="module")
def rendered(gpt_oss_folder, gpt_oss_tokenizer):
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)

    def render(messages, built_in, **settings) -> str:
        chat = Chat.of(messages, built_in=built_in, date="2025-08-05", **settings)
        return gpt_oss_tokenizer.decode(chat_format.render(chat))

    return render


def namespace(data) -> ToolNamespace:
    tools = [
        ToolDescription(tool["name"], tool["description"], tool["parameters"])
        for tool in data["tools"]
    ]
    return ToolNamespace(data["name"], data["description"], tuple(tools))


def test_the_system_message_describes_them(case, rendered):
    text, tools = case("python and browser tools")
    question = [{"role": "user", "content": "What is the newest Python?"}]
    assert rendered(question, [*map(namespace, tools.values())]) == text
    assert "# Tools" not in rendered(question, [namespace(tools["python"])], tool_choice="none")


def test_a_call_and_its_result_are_part_of_the_reasoning(case, rendered):
    text, tools = case("python call and its result")
    python = namespace(tools["python"])
    assert rendered(CALLED, [python]) == text
    later = [*CALLED, {"role": "assistant", "content": "Large."}, QUESTION]
    forgotten = rendered(later, [python])
    assert "print(2**100)" not in forgotten
    assert "12676506" not in forgotten
    assert "Large." in forgotten


def test_a_function_of_the_same_name_is_called_as_ever(rendered):
    text = rendered(CALLED, [])
    assert "to=functions.python<|channel|>commentary <|constrain|>json<|message|>" in text
    assert "<|start|>functions.python to=assistant<|channel|>commentary<|message|>" in text


def test_the_browser_is_described_as_openai_harmony_describes_it(case):
    class Web:
        source = "web"

    _, tools = case("python and browser tools")
    described: Namespace = Browser(Web(), len).namespace  # type: ignore[arg-type]
    expected = tools["browser"]
    assert (described.name, described.description) == ("browser", expected["description"])
    for function, tool in zip(described.functions, expected["tools"], strict=True):
        assert (function.name, function.description) == (tool["name"], tool["description"])
        assert function.parameters == tool["parameters"]


def test_a_call_of_them_can_be_required():
    chat = Chat.of([QUESTION], built_in=[ToolNamespace("python")], tool_choice="required")
    assert chat.must_call
    with pytest.raises(OssiaError, match="no tools to call"):
        Chat.of([QUESTION], tool_choice="required")
