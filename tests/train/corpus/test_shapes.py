"""Conversations in the shapes of other tools are what they mean there, or refused by name."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from ossia import text
from ossia.errors import OssiaError
from ossia.text import Chat, ChatFormat, Tokenizer
from ossia.train.corpus import conversations
from ossia.train.loss import IGNORED

DATE = "2026-01-02"
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}, "c": {}},
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": PARAMETERS}}
]
HI = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def user(content: str = "q") -> dict[str, Any]:
    return {"role": "user", "content": content}


def reply(content: str | None = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calling(arguments: Any = '{"a": 1}', id: str | None = "x", **more: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return reply("", tool_calls=[call | ({"id": id} if id else {})], **more)


def result(**more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "1", "tool_call_id": "x"} | more


CALLED = [user(), calling(), result(), reply("one")]


def read(line: Any) -> conversations.Conversation:
    return conversations.checked(line, "here")


@pytest.fixture(scope="module")
def qwen(qwen3_folder: Path, qwen3_tokenizer: Tokenizer) -> ChatFormat:
    return text.load_format(qwen3_folder, qwen3_tokenizer)


def learned(line: Any, chat_format: ChatFormat, tokenizer: Tokenizer) -> list[str]:
    """What is learned of a line."""
    found: list[str] = []
    for example in conversations.render(read(line), chat_format, DATE):
        before = IGNORED
        for target in example.targets.tolist():
            if target != IGNORED:
                piece = tokenizer.decode([target])
                found[-1:] = [found[-1] + piece] if before != IGNORED else [*found[-1:], piece]
            before = target
    return found


SAME = {
    "a system beside the messages": (
        {"system": "s", "messages": HI},
        [{"role": "system", "content": "s"}, *HI],
    ),
    "messages as JSON": ({"messages": json.dumps(HI)}, HI),
    "content as parts": (
        {"messages": [user(), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
        HI,
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        HI,
    ),
    "ShareGPT with a system": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q", "weight": None},
                {"from": "gpt", "value": "a"},
            ]
        },
        [{"role": "system", "content": "s"}, *HI],
    ),
    "ShareGPT's keys as messages'": ({"conversations": HI}, HI),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, HI),
    "prompt and response": ({"prompt": "q", "response": "a"}, HI),
    "prompt and completion as messages": ({"prompt": HI[:1], "completion": HI[1:]}, HI),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, HI),
    "Alpaca without an input": ({"instruction": "q", "output": "a"}, HI),
    "Alpaca with an input": (
        {"instruction": "q", "input": "x", "output": "a"},
        [user("q\nx"), reply()],
    ),
    "Alpaca with a history": (
        {"instruction": "q", "output": "a", "history": [["p", "b"]], "system": "s"},
        [{"role": "system", "content": "s"}, user("p"), reply("b"), *HI],
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_shapes_of_other_tools(name: str) -> None:
    line, messages = SAME[name]
    assert read(line).chat == Chat.of(messages)


CALLS = {
    "legacy": [
        user(),
        reply(None, function_call={"name": "f", "arguments": '{"a": 1}'}),
        {"role": "function", "name": "f", "content": "1"},
        reply("one"),
    ],
    "no type": [user(), reply("", tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}]),
                result(), reply("one")],
    "no function": [user(), reply("", tool_calls=[{"name": "f", "arguments": {"a": 1}}]), result(),
                    reply("one")],
    "parameters": [user(), reply("", tool_calls=[{"name": "f", "parameters": {"a": 1}}]), result(),
                   reply("one")],
    "a namespace": [
        user(),
        reply("", tool_calls=[{"function": {"name": "functions.f", "arguments": {"a": 1}}}]),
        {"role": "tool", "name": "functions.f", "content": "1"},
        reply("one"),
    ],
    "no id": [user(), calling(id=None), {"role": "tool", "content": "1"}, reply("one")],
    "in tags": [
        user(),
        reply('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'),
        {"role": "tool", "content": "<tool_response>\n1\n</tool_response>"},
        reply("one"),
    ],
    "in tags, as Python prints": [
        user(),
        reply("<tool_call>\n{'arguments': {'a': 1}, 'name': 'f'}\n</tool_call>"),
        {"role": "tool", "content": "1"},
        reply("one"),
    ],
    "ShareGPT": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "one"},
    ],
    "ms-swift": [
        user(),
        {"role": "tool_call", "content": '{"name": "f", "arguments": {"a": 1}}'},
        {"role": "tool_response", "content": "1"},
        reply("one"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_every_shape_are_learned_as_the_same_text(
    name: str, qwen: ChatFormat, qwen3_tokenizer: Tokenizer
) -> None:
    line = {"conversations" if name == "ShareGPT" else "messages": CALLS[name], "tools": TOOLS}
    assert learned(line, qwen, qwen3_tokenizer) == learned(
        {"messages": CALLED, "tools": TOOLS}, qwen, qwen3_tokenizer
    )


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_every_shape_are_the_same_in_harmony(
    name: str, gpt_oss_folder: Path, gpt_oss_tokenizer: Tokenizer
) -> None:
    harmony = text.load_format(gpt_oss_folder, gpt_oss_tokenizer)
    line = {"conversations" if name == "ShareGPT" else "messages": CALLS[name], "tools": TOOLS}
    assert learned(line, harmony, gpt_oss_tokenizer) == learned(
        {"messages": CALLED, "tools": TOOLS}, harmony, gpt_oss_tokenizer
    )


def test_calls_and_results_of_one_turn_stay_together() -> None:
    said = {"from": "gpt", "value": "Look."}
    calls = [{"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"a": n}})}
             for n in (1, 2)]  # fmt: skip
    both = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    turns = [{"from": "human", "value": "q"}, said, *calls, {"from": "tool", "value": both},
             {"from": "gpt", "value": "done"}]  # fmt: skip
    messages = read({"conversations": turns}).chat.messages
    assert [message.role for message in messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert (messages[1].content, [call.arguments for call in messages[1].tool_calls]) == (
        "Look.",
        ['{"a": 1}', '{"a": 2}'],
    )
    assert [message.content for message in messages[2:4]] == ["1", "2"]


@pytest.mark.parametrize(
    "tools",
    [
        TOOLS,
        json.dumps(TOOLS),
        [TOOLS[0]["function"]],
        [json.dumps(TOOLS[0])],
        [{**TOOLS[0], "strict": None}],
        [{"type": "function", "function": {**TOOLS[0]["function"], "returns": None}}],
    ],
)
def test_tools_in_every_shape(tools: Any) -> None:
    given = read({"messages": CALLED, "tools": tools}).chat.tools
    assert [tool.to_dict() for tool in given] == TOOLS
    assert [
        tool.to_dict() for tool in read({"messages": HI, "functions": tools}).chat.tools
    ] == TOOLS


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null"])
def test_no_tools(tools: Any) -> None:
    if tools == "null":
        with pytest.raises(OssiaError, match='here: its "tools" is not a list'):
            read({"messages": HI, "tools": tools})
    else:
        assert read({"messages": HI, "tools": tools}).chat.tools == ()


def test_nulls_that_a_table_put_into_arguments_are_none() -> None:
    """Those that the schema allows are meant."""
    arguments = {"a": None, "b": None, "c": None, "zzz": None}
    line = {"messages": [user(), calling(arguments), result(), reply()], "tools": TOOLS}
    assert read(line).chat.messages[1].tool_calls[0].arguments == '{"b": null, "c": null}'
    line["tools"] = []
    assert json.loads(read(line).chat.messages[1].tool_calls[0].arguments) == arguments


NOT_LEARNED = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"training": False},
    {"loss": False},
    {"loss_mask": 0},
    {"masked": True},
    {"weight": 1, "train": False},
]


@pytest.mark.parametrize("keys", NOT_LEARNED)
def test_a_reply_that_is_not_to_be_learned_is_only_read(
    keys: dict[str, Any], qwen: ChatFormat, qwen3_tokenizer: Tokenizer
) -> None:
    line = {"messages": [user(), reply("first", **keys), user(), reply("second")]}
    assert learned(line, qwen, qwen3_tokenizer) == ["second<|im_end|>"]
    line = {"messages": [user(), reply("first"), user(), reply("second", **keys)]}
    assert learned(line, qwen, qwen3_tokenizer) == ["first<|im_end|>"]


@pytest.mark.parametrize(
    "keys", [{"weight": 1}, {"train": True}, {"masked": False}, {"mask": None}]
)
def test_a_reply_that_is_to_be_learned(
    keys: dict[str, Any], qwen: ChatFormat, qwen3_tokenizer: Tokenizer
) -> None:
    line = {"messages": [{**user(), "weight": 0}, reply("first", **keys)]}
    assert learned(line, qwen, qwen3_tokenizer) == ["first<|im_end|>"]


def test_weights_count_in_harmony_and_without_a_format(
    gpt_oss_folder: Path, gpt_oss_tokenizer: Tokenizer, gpt2_folder: Path, gpt2_tokenizer: Tokenizer
) -> None:
    line = {"messages": [user(), calling(weight=0), result(), reply("one")], "tools": TOOLS}
    harmony = text.load_format(gpt_oss_folder, gpt_oss_tokenizer)
    final = "<|channel|>final<|message|>one<|return|>"
    assert learned(line, harmony, gpt_oss_tokenizer) == [final]
    plain = text.load_format(gpt2_folder, gpt2_tokenizer)
    line = {"messages": [user(), reply("first", weight=0), user(), reply("second")]}
    assert learned(line, plain, gpt2_tokenizer) == ["second<|endoftext|>"]


def test_only_the_completion_is_learned(qwen: ChatFormat, qwen3_tokenizer: Tokenizer) -> None:
    line = {"prompt": [user(), reply("first"), user()], "completion": [reply("second")]}
    assert learned(line, qwen, qwen3_tokenizer) == ["second<|im_end|>"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [user(), reply(weight=0.5)]}, "messages[1].weight: 0.5 cannot be honoured"),
        ({"messages": [user(), reply(mask=True)]}, "messages[1].mask: true cannot be honoured"),
        ({"messages": [user(), reply(train_detail=[{"begin": 0}])]}, "messages[1].train_detail: ["),
        ({"messages": [user(), reply(loss_weight=2)]}, "messages[1].loss_weight: 2 cannot be"),
        ({"messages": [user(), reply(weight="0")]}, 'messages[1].weight: "0" cannot be honoured'),
        ({"messages": [{**user(), "train": True}, reply()]}, "messages[0].train: only the assist"),
        ({"messages": HI, "weight": 0.3}, 'its "weight" asks for what finetune does not do'),
        ({"messages": HI, "mask": "Assistant"}, 'its "mask" asks for'),
        ({"messages": HI, "labels": [1]}, 'its "labels" asks for'),
        ({"messages": HI, "train_on_inputs": True}, 'its "train_on_inputs" asks for'),
        ({"messages": HI, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kw"),
        ({"chosen": HI, "rejected": HI}, "it looks like preferences"),
        ({"text": "a"}, "which ossia train reads"),
        ({"prompt": "q", "completion": 7}, 'its "completion" is not a list'),
        ({"instruction": "q", "output": ["a", "b"]}, 'its "output" is not a string'),
        ({"instruction": "q", "output": "a", "history": [1]}, 'its "history" is not a list of'),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "role must be one of"),
        ({"messages": [user(), {"role": "tool_call", "content": "{"}]}, "messages[1]: not a call"),
        ({"messages": [user(), reply("<tool_call>x</tool_call>")]}, "<tool_call>: not a call"),
        (
            {"messages": [user(), reply("a", weight=0), {"role": "tool_call", "content": "{}"}]},
            "messages[2]: not a call",
        ),
        (
            {
                "messages": [
                    user(),
                    reply("a", weight=0),
                    {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'},
                ]
            },
            "messages[2]: a reply is learned whole",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(line: Any, message: str) -> None:
    with pytest.raises(OssiaError) as error:
        read(line)
    assert str(error.value).startswith("here: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("listed", [False, True])
def test_files_as_editors_write_them(
    encoding: str, mark: bytes, end: str, listed: bool, tmp_path: Path
) -> None:
    lines = [{"messages": [user("Grüß dich"), reply("世界")]}, {"messages": HI}]
    content = json.dumps(lines, indent=1, ensure_ascii=False)
    if not listed:
        content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    file = tmp_path / "chats.jsonl"
    file.write_bytes(mark + content.replace("\n", end).encode(encoding))
    found = conversations.read(str(file), "--data")
    assert [c.chat for c in found] == [Chat.of(line["messages"]) for line in lines]
    assert [c.where.removeprefix(f"{file}, ") for c in found] == (
        ["item 1", "item 2"] if listed else ["line 1", "line 2"]
    )


def test_a_file_that_is_not_what_its_mark_says(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(codecs.BOM_UTF16_LE + b"\x00\xd8x")
    with pytest.raises(OssiaError, match="not the text in UTF-16 or UTF-32 that its first bytes"):
        conversations.read(str(file), "--data")
