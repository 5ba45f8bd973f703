"""Conversations: what is refused and where, and that just what the model must write is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ossia import text
from ossia.errors import OssiaError
from ossia.text import Chat, ChatFormat, Tokenizer
from ossia.train.corpus import conversations, documents
from ossia.train.corpus.conversations import Conversation, Example
from ossia.train.loss import IGNORED

DATE = "2026-01-02"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def call(place: str, id: str | None = None) -> dict:
    function = {"name": "weather", "arguments": json.dumps({"place": place})}
    return {"type": "function", "function": function} | ({"id": id} if id else {})


ONE_TURN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
REASONED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "reasoning": "Two and two.", "content": "4"},
    {"role": "user", "content": "And <|end|> <|im_end|>?"},  # ordinary text
    {"role": "assistant", "reasoning_content": "It is text.", "content": "That is <|call|> text."},
]
PLAIN = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
WITH_TOOLS = [
    {"role": "user", "content": "Is it warm in Rome?"},
    {"role": "assistant", "thinking": "Look it up.", "tool_calls": [call("Rome", "a")]},
    {"role": "tool", "tool_call_id": "a", "content": '{"degrees": 30}'},
    {"role": "assistant", "reasoning": "30 is warm.", "content": "Yes, it is."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]
PARALLEL = [
    {"role": "user", "content": "Rome or Oslo?"},
    {
        "role": "assistant",
        "reasoning": "Two calls.",
        "content": "One moment.",
        "tool_calls": [call("Rome", "a"), call("Oslo", "b")],
    },
    {"role": "tool", "tool_call_id": "a", "content": "30"},
    {"role": "tool", "tool_call_id": "b", "content": "5"},
    {"role": "assistant", "reasoning": "30 > 5", "content": "Rome."},
]
ALL = {
    "one turn": ONE_TURN,
    "reasoned": REASONED,
    "plain": PLAIN,
    "with tools": WITH_TOOLS,
    "parallel": PARALLEL,
}


@pytest.fixture(scope="module")
def harmony(gpt_oss_folder: Path, gpt_oss_tokenizer: Tokenizer) -> ChatFormat:
    return text.load_format(gpt_oss_folder, gpt_oss_tokenizer)


@pytest.fixture(scope="module")
def qwen(qwen3_folder: Path, qwen3_tokenizer: Tokenizer) -> ChatFormat:
    return text.load_format(qwen3_folder, qwen3_tokenizer)


@pytest.fixture(scope="module")
def their_qwen(qwen3_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(qwen3_folder)


def conversation(messages: list[dict], tools: list[dict] | None = None) -> Conversation:
    return Conversation("here", Chat.of(messages, tools=tools))


def tools_of(messages: list[dict]) -> list[dict] | None:
    return [WEATHER] if any("tool_calls" in message for message in messages) else None


def learned(example: Example, tokenizer: Tokenizer) -> list[str]:
    """The runs of targets, as text."""
    runs: list[list[int]] = [[]]
    for target in example.targets.tolist():
        if target == IGNORED:
            runs.append([])
        else:
            runs[-1].append(target)
    return [tokenizer.decode(run) for run in runs if run]


def prompts_and_replies(examples: list[Example]) -> list[tuple[list[int], list[int]]]:
    """Each run of targets, and the inputs that a model reads before it writes the first of it."""
    found = []
    for example in examples:
        inputs, targets = example.inputs.tolist(), example.targets.tolist()
        starts = [n for n in range(len(targets)) if targets[n] != IGNORED]
        starts = [n for n in starts if n == 0 or targets[n - 1] == IGNORED]
        for start in starts:
            end = start
            while end < len(targets) and targets[end] != IGNORED:
                end += 1
            reply = targets[start:end]
            # What it wrote is what it reads on, token by token.
            assert inputs[start + 1 : end] == reply[:-1]
            found.append((inputs[: start + 1], reply))
    return found


@pytest.mark.parametrize("name", ALL)
def test_harmony_learns_each_reply_after_the_prompt_of_inference(
    name: str, harmony: ChatFormat, gpt_oss_tokenizer: Tokenizer
) -> None:
    """The prompts are `render`'s, and each reply is read back by the parser as the message."""
    messages, tools = ALL[name], tools_of(ALL[name])
    examples = conversations.render(conversation(messages, tools), harmony, DATE)
    turns = prompts_and_replies(examples)
    expected = []
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        calls = message.get("tool_calls", [])
        for done in range(max(1, len(calls))):
            said = {**message, "tool_calls": calls[:done]}
            history = messages[:n] + ([said] if done else [])
            expected.append(harmony.render(Chat.of(history, tools=tools, date=DATE)))
    assert [prompt for prompt, _ in turns] == expected
    stops = {gpt_oss_tokenizer.control[x] for x in ("<|return|>", "<|call|>")}
    assert all(reply[-1] in stops and not stops & set(reply[:-1]) for _, reply in turns)


def test_harmony_learns_what_openai_harmony_renders_for_training(
    harmony: ChatFormat, gpt_oss_tokenizer: Tokenizer, reference
) -> None:
    """A prompt and its reply are the reference's rendering of the whole, id by id."""
    import openai_harmony as oh

    turn = {"role": "assistant", "reasoning": "Two and two.", "content": "4"}
    (example,) = conversations.render(conversation([*REASONED[:2], turn]), harmony, DATE)
    system = oh.SystemContent.new().with_conversation_start_date(DATE)
    developer = oh.DeveloperContent.new().with_instructions("Be brief.")
    say = oh.Message.from_role_and_content
    said = [
        say(oh.Role.SYSTEM, system),
        say(oh.Role.DEVELOPER, developer),
        say(oh.Role.USER, "What is 2 + 2?"),
        say(oh.Role.ASSISTANT, "Two and two.").with_channel("analysis"),
        say(oh.Role.ASSISTANT, "4").with_channel("final"),
    ]
    whole = reference.render_conversation_for_training(
        oh.Conversation.from_messages(said), oh.RenderConversationConfig(auto_drop_analysis=False)
    )
    ((prompt, reply),) = prompts_and_replies([example])
    assert prompt + reply == whole
    assert gpt_oss_tokenizer.decode(reply) == (
        "<|channel|>analysis<|message|>Two and two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|return|>"
    )


def test_earlier_reasoning_is_not_in_later_prompts_but_is_learned(
    harmony: ChatFormat, gpt_oss_tokenizer: Tokenizer
) -> None:
    examples = conversations.render(conversation(REASONED), harmony, DATE)
    first, second = (gpt_oss_tokenizer.decode(example.inputs.tolist()) for example in examples)
    assert "Two and two." in first
    assert "Two and two." not in second
    assert "It is text." in second


def test_what_only_continues_is_one_text(
    harmony: ChatFormat, qwen: ChatFormat, gpt_oss_tokenizer: Tokenizer
) -> None:
    """Without reasoning a history keeps all of a reply but the id it ended with: <|return|> is
    learned where <|end|> is read.
    """
    (example,) = conversations.render(conversation(PLAIN), harmony, DATE)
    assert learned(example, gpt_oss_tokenizer) == [
        "<|channel|>final<|message|>two<|return|>",
        "<|channel|>final<|message|>four<|return|>",
    ]
    read = gpt_oss_tokenizer.decode(example.inputs.tolist())
    assert "two<|end|>" in read
    assert "<|return|>" not in read
    tools = conversation(WITH_TOOLS[:4], [WEATHER])
    assert len(conversations.render(tools, harmony, DATE)) == 1
    assert len(conversations.render(tools, qwen, DATE)) == 1


@pytest.mark.parametrize("name", ALL)
def test_qwen_learns_each_reply_after_the_prompt_of_inference(
    name: str, qwen: ChatFormat, qwen3_tokenizer: Tokenizer, their_qwen: PreTrainedTokenizerBase
) -> None:
    """Prompt and reply together are what transformers renders of the messages up to the reply."""
    messages, tools = ALL[name], tools_of(ALL[name])
    examples = conversations.render(conversation(messages, tools), qwen, DATE)
    turns = prompts_and_replies(examples)
    spoken = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(turns) == len(spoken)
    end = qwen3_tokenizer.control["<|im_end|>"]
    for n, (prompt, reply) in zip(spoken, turns, strict=True):
        reasoning = [messages[n].get(key) for key in ("reasoning", "reasoning_content", "thinking")]
        history = Chat.of(messages[:n], tools=tools, thinking=any(reasoning))
        assert prompt == qwen.render(history)
        assert reply[-1] == end
        assert end not in reply[:-1]
        known = [
            message | {"reasoning_content": message.get("reasoning") or message.get("thinking")}
            if "reasoning_content" not in message
            else message
            for message in messages[: n + 1]
        ]
        whole = their_qwen.apply_chat_template(
            known, tools=[*tools] if tools else None, tokenize=False, enable_thinking=any(reasoning)
        )
        assert qwen3_tokenizer.decode([*prompt, *reply]) + "\n" == whole


def test_gpt2_learns_the_content_and_the_end_of_the_text(
    gpt2_folder: Path, gpt2_tokenizer: Tokenizer
) -> None:
    chat = text.load_format(gpt2_folder, gpt2_tokenizer)
    (example,) = conversations.render(conversation(ONE_TURN), chat, DATE)
    assert learned(example, gpt2_tokenizer) == ["Hello.<|endoftext|>"]
    with pytest.raises(OssiaError, match="here: this model has no chat format"):
        conversations.render(conversation(REASONED[:3]), chat, DATE)


def user(content: str = "x") -> dict:
    return {"role": "user", "content": content}


def reply(content: str = "y", **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def calling(arguments: object) -> dict:
    return reply("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])


def result(id: str | None = None) -> dict:
    return {"role": "tool", "content": "z"} | ({"tool_call_id": id} if id else {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", 'not an object whose "messages" is a list; it is a JSON array: write each element'),
        ('{"chosen": [], "rejected": []}', "it looks like preferences, which"),
        ('{"text": "a"}', "it is a text, which ossia train reads"),
        ({"messages": []}, "must end with an assistant's reply, not None"),
        ({"messages": [user()]}, "must end with an assistant's reply, not user"),
        ({"messages": [reply()]}, "messages[0]: roles out of order: an assistant's message begins"),
        ({"messages": [user(), reply(), reply()]}, "messages[2]: roles out of order"),
        ({"messages": [user(), reply("")]}, "messages[1]: a reply needs content or tool calls"),
        ({"messages": [user(), result(), reply()]}, "messages[1]: a tool's result without a call"),
        (
            {"messages": [user(), calling({}), result(), result(), reply()]},
            "messages[3]: a tool's result without a call",
        ),
        ({"messages": [user(), calling({}), user(), reply()]}, "messages[2]: a call before it has"),
        (
            {"messages": [user(), reply("", tool_calls=[call("a", "1")]), result("2"), reply()]},
            "messages[2]: no call before it has the id '2'",
        ),
        ({"messages": [user(), calling("[1]")]}, "tool_calls[0]: arguments not a JSON object"),
        ({"messages": [user(), calling("{")]}, "messages[1].tool_calls[0]: arguments not JSON"),
        ({"messages": [{"role": "bot", "content": ""}]}, "messages[0]: role must be one of"),
        ({"messages": [user(), reply()], "tools": {}}, 'its "tools" is not a list'),
        ({"messages": [user(), reply()], "tools": [1]}, "tools[0]: needs type 'function'"),
        ({"messages": [user(), reply()], "reasoning_effort": "max"}, "reasoning_effort must be"),
        ({"messages": [user(), reply()], "date": "today"}, "date must be YYYY-MM-DD, not 'today'"),
        ('{"messages": ', "not JSON"),
        (b'{"messages": "\xff"}', "not UTF-8 text (byte 14)"),
        ({"messages": [user("x" * 2000), reply()]}, "longer than"),
    ],
)
def test_a_bad_line_is_named_with_its_file(
    line: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if message == "longer than":
        monkeypatch.setattr(documents, "_LONGEST_LINE", 1000)
    content = line if isinstance(line, bytes | str) else json.dumps(line)
    content = content if isinstance(content, bytes) else content.encode()
    file = tmp_path / "chats.jsonl"
    file.write_bytes(json.dumps({"messages": ONE_TURN}).encode() + b"\n\n" + content + b"\n")
    with pytest.raises(OssiaError) as error:
        conversations.read(str(file), "--data")
    assert str(error.value).startswith(f"{file}, line 3: ")
    assert message in str(error.value)


def test_a_file_without_conversations_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    with pytest.raises(OssiaError, match=r"--data .*empty.jsonl: no such file"):
        conversations.read(str(file), "--data")
    file.write_text("\n")
    with pytest.raises(OssiaError, match=r"--eval-data .*empty.jsonl: holds no conversation"):
        conversations.read(str(file), "--eval-data")


def test_a_share_is_held_out_by_the_seed() -> None:
    every = [Conversation(str(n), Chat.of([])) for n in range(40)]
    train, held_out = conversations.split(every, 0.1, seed=1)
    assert len(held_out) == 4
    assert {c.where for c in train} | {c.where for c in held_out} == {c.where for c in every}
    assert conversations.split(every, 0.1, seed=1)[1] == held_out
    assert conversations.split(every, 0.1, seed=2)[1] != held_out
    with pytest.raises(OssiaError, match="1 conversations are too few"):
        conversations.split(every[:1], 0.1, seed=1)


def test_an_id_beyond_the_embedding_is_named() -> None:
    example = Example("there", torch.tensor([1, 2]), torch.tensor([IGNORED, 7]))
    conversations.check_ids([example], 8)
    with pytest.raises(OssiaError, match="there: the tokenizer gives the id 7"):
        conversations.check_ids([example], 7)
