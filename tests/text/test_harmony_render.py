"""Harmony renders to the ids that openai_harmony gives, and chats become harmony by its rules."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import OssiaError
from ossia.text import load_format, load_tokenizer
from ossia.text.chat import Chat, Role
from ossia.text.harmony.format import HarmonyFormat
from ossia.text.harmony.messages import Message, from_chat
from ossia.text.harmony.render import render, render_for_completion, render_for_training
from tests.text.harmony_reference import to_message

MODES = {
    "conversation": render,
    "completion": render_for_completion,
    "training": render_for_training,
}


def test_every_golden_conversation_has_the_same_ids(gpt_oss_tokenizer, golden):
    cases = golden("harmony_render")["cases"]
    assert len(cases) == 24
    for case in cases:
        messages = [to_message(message) for message in case["conversation"]["messages"]]
        ids = MODES[case["mode"]](
            messages, gpt_oss_tokenizer, auto_drop_analysis=case["auto_drop_analysis"]
        )
        assert ids == case["ids"], case["name"]


texts = st.text(st.sampled_from('ab é\n\r/"{}<|>世🚀'), max_size=12) | st.sampled_from(
    ["<|end|>", "line\n\nline\r\nline\n", "", "to=x", " <|channel|>final"]
)
names = st.text("abc_", min_size=1, max_size=8)
defaults = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.just(0.5)
    | texts
    | st.just([1, {"a": None}])
)
remarks = {
    "description": texts,
    "title": texts,
    "default": defaults,
    "examples": st.lists(texts | st.integers(), max_size=2),
    "nullable": st.booleans(),
}
leaves = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "number", "integer", "boolean", "array", "null", "x"])},
        optional={**remarks, "enum": st.lists(texts, max_size=3)},
    ),
    st.fixed_dictionaries(
        {"type": st.lists(st.sampled_from(["string", "integer", "null"]), max_size=3)},
        optional=remarks,
    ),
    st.fixed_dictionaries({}, optional=remarks),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object")},
            optional={
                **remarks,
                "properties": st.dictionaries(names, inner, max_size=3),
                "required": st.lists(names, max_size=2),
            },
        ),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}, optional=remarks),
        st.fixed_dictionaries({"oneOf": st.lists(inner, max_size=3)}, optional=remarks),
    ),
    max_leaves=6,
)
tools = st.fixed_dictionaries(
    {"name": names, "description": texts}, optional={"parameters": schemas}
)


def namespaces(*keys: str):
    return st.dictionaries(
        st.sampled_from(keys),
        st.fixed_dictionaries(
            {"tools": st.lists(tools, max_size=2)}, optional={"description": texts}
        ),
        max_size=2,
    ).map(lambda chosen: {key: {"name": key, **value} for key, value in chosen.items()})


channels = st.fixed_dictionaries(
    {
        "valid_channels": st.lists(st.sampled_from(["analysis", "final"]), max_size=2),
        "channel_required": st.booleans(),
    }
)
system_contents = st.fixed_dictionaries(
    {"type": st.just("system_content"), "channel_config": channels},
    optional={
        "model_identity": texts,
        "reasoning_effort": st.sampled_from(["Low", "Medium", "High"]),
        "conversation_start_date": texts,
        "knowledge_cutoff": texts,
        "tools": namespaces("python", "browser"),
    },
)
developer_contents = st.fixed_dictionaries(
    {"type": st.just("developer_content")},
    optional={"instructions": texts, "tools": namespaces("functions", "other")},
)
text_contents = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
headers = {
    "channel": st.sampled_from(["analysis", "commentary", "final"]),
    "recipient": st.sampled_from(["all", "assistant", "functions.f", "python"]),
    "content_type": st.sampled_from(["<|constrain|>json", "<|constrain|>", "code", "json"]),
}


def messages_of(role, content, **fixed):
    return st.fixed_dictionaries(
        {"role": st.just(role), "content": st.lists(content, min_size=1, max_size=2), **fixed},
        optional=headers,
    )


conversations = st.lists(
    st.one_of(
        messages_of("system", system_contents),
        messages_of("developer", developer_contents),
        messages_of("user", text_contents, name=st.none() | names),
        messages_of("assistant", text_contents),
        messages_of("tool", text_contents, name=names),
    ),
    max_size=6,
)


def filled(content):
    """openai_harmony fills in the absent fields of a system message, unless they are None."""
    if content["type"] != "system_content":
        return content
    absent = dict.fromkeys(("model_identity", "reasoning_effort", "knowledge_cutoff"))
    return {**absent, **content}


@settings(max_examples=300)
@given(conversation=conversations, mode=st.sampled_from(sorted(MODES)), drop=st.booleans())
def test_any_conversation_has_the_reference_s_ids(
    reference, gpt_oss_tokenizer, conversation, mode, drop
):
    import openai_harmony as harmony

    ours = MODES[mode](
        [to_message(message) for message in conversation],
        gpt_oss_tokenizer,
        auto_drop_analysis=drop,
    )
    data = [
        {**message, "content": [filled(content) for content in message["content"]]}
        for message in conversation
    ]
    theirs = harmony.Conversation.from_messages([harmony.Message.from_dict(item) for item in data])
    config = harmony.RenderConversationConfig(auto_drop_analysis=drop)
    if mode == "completion":
        expected = reference.render_conversation_for_completion(
            theirs, harmony.Role.ASSISTANT, config
        )
    elif mode == "training":
        expected = reference.render_conversation_for_training(theirs, config)
    else:
        expected = reference.render_conversation(theirs, config)
    assert gpt_oss_tokenizer.decode(ours) == gpt_oss_tokenizer.decode(expected)
    assert ours == expected


def test_the_reference_is_the_one_of_the_golden_files(reference, golden):
    import openai_harmony as harmony

    case = golden("harmony_render")["cases"][0]
    conversation = harmony.Conversation.from_json(json.dumps(case["conversation"]))
    ids = reference.render_conversation_for_completion(conversation, harmony.Role.ASSISTANT)
    assert ids == case["ids"]


# ------------------------------------------------------------------ chats


WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather."}}


def call(id: str, name: str, arguments: str = "{}"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat(*messages, **options) -> list[Message]:
    return from_chat(Chat.of(messages, date="2025-08-05", **options))


def outline(messages: list[Message]) -> list[tuple]:
    """Role, channel and text of the messages after the system's."""
    return [(message.role, message.channel, message.content[0]) for message in messages[1:]]


def test_a_finished_turn_loses_its_reasoning():
    messages = chat(
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "reasoning": "Sum.", "content": "4"},
        {"role": "user", "content": "And 3+3?"},
        {"role": "assistant", "reasoning": "Sum again.", "content": "6"},
        {"role": "user", "content": "Thanks"},
    )
    assert outline(messages) == [
        (Role.USER, None, "2+2?"),
        (Role.ASSISTANT, "final", "4"),
        (Role.USER, None, "And 3+3?"),
        (Role.ASSISTANT, "final", "6"),
        (Role.USER, None, "Thanks"),
    ]


def test_an_open_turn_keeps_its_reasoning_across_tool_calls():
    messages = chat(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning": "Old.", "content": "Hello"},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning": "Look it up.", "tool_calls": [call("1", "weather")]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    )
    assert outline(messages)[3:] == [
        (Role.ASSISTANT, "analysis", "Look it up."),
        (Role.ASSISTANT, "commentary", "{}"),
        (Role.TOOL, "commentary", "sunny"),
    ]
    assert "Old." not in [message.content[0] for message in messages]


def test_text_beside_calls_is_a_preamble_and_results_find_their_calls():
    messages = chat(
        {"role": "user", "content": "Both?"},
        {
            "role": "assistant",
            "content": "I will check both.",
            "tool_calls": [call("a", "weather"), call("b", "clock")],
        },
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    )
    assert outline(messages)[1] == (Role.ASSISTANT, "commentary", "I will check both.")
    assert [message.recipient for message in messages[3:5]] == [
        "functions.weather",
        "functions.clock",
    ]
    assert [message.name for message in messages[5:]] == ["functions.clock", "functions.weather"]


def test_a_result_without_a_call_is_an_error_that_names_it():
    with pytest.raises(OssiaError, match=r"messages\[1\].*'zz'"):
        chat(
            {"role": "user", "content": "?"},
            {"role": "tool", "tool_call_id": "zz", "content": "1"},
        )


def test_leading_system_messages_are_the_developer_s_instructions(gpt_oss_tokenizer):
    messages = chat(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Speak French."}]},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Now speak German."},
    )
    text = gpt_oss_tokenizer.decode(render(messages, gpt_oss_tokenizer))
    assert (
        "<|start|>developer<|message|># Instructions\n\nBe brief.\n\nSpeak French.<|end|>" in text
    )
    assert text.endswith("<|start|>developer<|message|># Instructions\n\nNow speak German.<|end|>")


def test_the_format_agrees_with_the_hub_s_template_but_for_its_known_slips(
    gpt_oss_folder, gpt_oss_tokenizer, golden
):
    """Where the template differs, harmony is right; these edits are the whole difference."""
    slips = [
        ("// default: celsius,\n", "// default: celsius\n"),
        ("riddles\n\n<|end|>", "riddles<|end|>"),
        ("type get_location = () => any", "type get_location = (_: {\n}) => any"),
        ("commentary json<|message|>", "commentary <|constrain|>json<|message|>"),
        (r'"{\"sunny\": true, \"temperature\": 20}"', '{"sunny": true, "temperature": 20}'),
    ]
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)
    cases = golden("chat_template_gpt_oss")
    compared = 0
    for case in cases["cases"]:
        settings = dict(case["kwargs"])
        effort = settings.pop("reasoning_effort", None)
        if settings or not case["add_generation_prompt"]:
            continue  # own identity, built-in tools, training: no part of a chat request
        expected = case["text"]
        for theirs, right in slips:
            expected = expected.replace(theirs, right)
        chat = Chat.of(
            case["messages"],
            tools=case["tools"],
            reasoning_effort=effort,
            date=cases["current_date"],
        )
        ids = chat_format.render(chat)
        assert gpt_oss_tokenizer.decode(ids) == expected, case["name"]
        if expected == case["text"]:
            assert ids == case["ids"], case["name"]
        compared += 1
    assert compared == 8


def test_a_prompt_without_thinking_asks_for_little_of_it(gpt_oss_folder, gpt_oss_tokenizer):
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)
    hello = [{"role": "user", "content": "Hi"}]
    text = gpt_oss_tokenizer.decode(chat_format.render(Chat.of(hello, thinking=False)))
    assert "Reasoning: low" in text
    eager = Chat.of(hello, thinking=False, reasoning_effort="high")
    assert "Reasoning: high" in gpt_oss_tokenizer.decode(chat_format.render(eager))


# ------------------------------------------------------------------ settings of a chat


SHOPPING_LIST = {
    "type": "json_schema",
    "json_schema": {
        "name": "shopping_list",
        "description": "What to buy.\nOne entry each.",
        "schema": {
            "properties": {
                "items": {
                    "type": "array",
                    "description": "entries on the shopping list",
                    "items": {"type": "string"},
                }
            },
            "type": "object",
        },
    },
}
HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def rendered(gpt_oss_folder, gpt_oss_tokenizer):
    """rendered(messages, setting=...) is the text of the prompt."""
    chat_format = load_format(gpt_oss_folder, gpt_oss_tokenizer)

    def render_chat(messages, **settings) -> str:
        return gpt_oss_tokenizer.decode(chat_format.render(Chat.of(messages, **settings)))

    return render_chat


def test_an_answer_s_schema_ends_the_developer_s_message(rendered):
    """As in the example of "Structured output" in docs/format.md of openai/harmony."""
    text = rendered(HELLO, instructions="Be brief.", tools=[WEATHER], response_format=SHOPPING_LIST)
    developer = text.partition("<|start|>developer<|message|>")[2].partition("<|end|>")[0]
    assert developer.startswith("# Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\n")
    assert developer.endswith(
        "} // namespace functions\n\n"
        "# Response Formats\n\n"
        "## shopping_list\n\n"
        "// What to buy.\n// One entry each.\n"
        '{"properties":{"items":{"type":"array","description":"entries on the shopping list",'
        '"items":{"type":"string"}}},"type":"object"}'
    )


def test_any_json_object_is_a_schema_too(rendered):
    text = rendered(HELLO, response_format={"type": "json_object"})
    section = '# Response Formats\n\n## json_object\n\n{"type":"object"}<|end|>'
    assert f"<|start|>developer<|message|>{section}" in text
    assert rendered(HELLO, response_format={"type": "text"}) == rendered(HELLO)


def test_instructions_come_before_those_in_messages(rendered):
    system = [{"role": "system", "content": "Speak French."}, *HELLO]
    together = [{"role": "system", "content": "Be brief.\n\nSpeak French."}, *HELLO]
    assert rendered(system, instructions="Be brief.") == rendered(together)


def test_tools_that_must_not_be_called_are_not_offered(rendered):
    history = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call("1", "weather")]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    text = rendered(history, tools=[WEATHER], tool_choice="none")
    assert text == rendered(history)
    assert rendered(history, tools=[WEATHER], tool_choice="auto") != text


def test_tools_that_are_nested_too_deeply_are_refused(bytes_folder):
    chat_format = HarmonyFormat(load_tokenizer(bytes_folder))

    def render(depth):
        parameters: dict = {"type": "object"}
        for _ in range(depth):
            parameters = {"type": "object", "properties": {"a": parameters}}
        function = {"name": "f", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        return chat_format.render([{"role": "user", "content": "x"}], tools=tools)

    assert render(20)
    with pytest.raises(OssiaError, match="tools: nested too deeply"):
        render(450)
