"""`python -m recipes.stdlib`: files to fine-tune on, and scores of a scripted model."""

from __future__ import annotations

import json

import pytest

from recipes.stdlib.command import app


def call(name: str, arguments: str, end: str = "<|call|>") -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}{end}"


def final(text: str, end: str = "<|return|>") -> str:
    return f"<|channel|>final<|message|>{text}{end}"


def chat(*messages: dict, task: str = "sum", effort: str = "low") -> dict:
    question = {"role": "user", "content": "?"}
    return {
        "task": task,
        "reasoning_effort": effort,
        "date": "2031-12-24",
        "messages": [question, *messages],
    }


def answer(content: str | list) -> dict:
    return {"role": "assistant", "content": content}


def calling(name: str, arguments: str, result: str) -> tuple[dict, dict]:
    made = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return (
        {"role": "assistant", "content": "", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    )


@pytest.fixture
def score(ossia_command, script, tmp_path):
    """Score scripts on chats: the report, the engine, and what was wrong."""

    def run(chats, *scripts, options=()):
        engine = script(*scripts)
        file, wrong = tmp_path / "chats.jsonl", tmp_path / "wrong.jsonl"
        file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
        options = ("--data", file, "--wrong", wrong, *options)
        result = ossia_command("score", "--model", "scripted", "--json", *options, commands=app)
        assert result.code == 0, result.err
        return json.loads(result.out), engine, list(map(json.loads, wrong.open()))

    return run


def test_files_are_written_whole_and_the_same_each_time(ossia_command, tmp_path):
    for name in "ab":
        result = ossia_command(
            "write", "--out", tmp_path / name, "--count", 20, "--held-out", 1, commands=app
        )
        assert result.code == 0
        assert "train.jsonl: 20 chats" in result.out
    for name in ("train.jsonl", "held_out.jsonl"):
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert all(json.loads(line)["messages"] for line in text.splitlines())
    again = ossia_command("write", "--out", tmp_path / "a", commands=app)
    assert (again.code, "not an empty folder" in again.err) == (2, True)


def test_right_answers_are_counted_by_task_and_effort(score):
    chats = [
        chat(answer("4"), effort="low"),
        chat(answer("4"), effort="high"),
        chat(answer("b"), task="letter", effort="high"),
    ]
    thinking = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    report, engine, wrong = score(chats, final("5"), thinking + final("4"), thinking + final("b"))
    assert report["accuracy"] == {"sum": {"low": 0, "high": 1}, "letter": {"high": 1}}
    assert report["mean_accuracy"] == {"low": 0, "high": 1}
    assert report["mean_reasoning_tokens"] == {"low": 0, "high": 3}
    assert report["well_formed"] == 1
    assert engine.most_at_once == 1
    assert [one["replied"][-1]["content"] for one in wrong] == ["5"]


def test_right_answers_are_counted_by_position(score):
    second = [{"role": "user", "content": "And?"}, answer("5")]
    chats = [chat(answer("4")), chat(answer("4"), *second), chat(answer("4"), *second)]
    report, engine, _ = score(chats, final("4"), final("5"), final("6"))
    assert report["accuracy_by_position"] == {"1": {"low": 1}, "2": {"low": 0.5}}
    assert len(engine.requests) == 3  # the earlier answers are those on file


def test_tools_are_run_and_those_of_the_chat_return_what_is_on_file(score):
    own = chat(*calling("weather", '{"city": "Oslo"}', "rain"), answer("rain"))
    built_in = chat(*calling("calculate", '{"expression": "6 * 7"}', "42"), answer("42"))
    report, engine, wrong = score(
        [own, built_in, own],
        call("weather", '{"city": "Oslo"}'),
        final("rain"),
        call("calculate", '{"expression": "6 * 7"}'),
        final("42"),
        call("weather", '{"city": "Rome"}'),
        final("sun"),
    )
    assert (report["well_formed"], report["accuracy"]["sum"]["low"]) == (1, 0.6667)
    assert len(engine.requests) == 6
    assert [message.get("content") for message in wrong[0]["replied"]] == [
        "?",
        "",
        "error: nothing found",
        "sun",
    ]


@pytest.mark.parametrize(
    "reply",
    [
        final("4", end="<|end|>"),
        "<|message|>4<|return|>",
        "<|channel|>analysis<|message|>4<|return|>",
        "<|channel|>final<|message|>4<|end|><|start|>assistant" + final("4"),
        "<|channel|>poem<|message|>4<|end|><|start|>assistant" + final("4"),
    ],
)
def test_harmony_that_is_not_to_the_letter_is_told(score, reply):
    report, _, _ = score([chat(answer("4"))], reply)
    assert report["well_formed"] == 0


def test_a_call_that_is_no_json_is_not_well_formed(score):
    report, _, _ = score([chat(answer("4"))], call("calculate", "6 * 7"), final("4"))
    assert (report["well_formed"], report["accuracy"]["sum"]["low"]) == (0, 1)


def test_a_model_that_calls_for_ever_is_given_up(score):
    report, engine, _ = score([chat(answer("4"))], *[call("calculate", "{}")] * 20)
    assert report["accuracy"]["sum"]["low"] == 0
    assert len(engine.requests) < 10


def without(chat: dict, key: str) -> dict:
    return {name: value for name, value in chat.items() if name != key}


GOOD = chat(answer("4"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "holds no chat"),
        (b"\n \n", "holds no chat"),
        (b"{", "line 1: not JSON"),
        (b'\n{"text": "caf\xe9"}', "line 2: not UTF-8 text (byte 13)"),
        (b"[]", 'line 1: not an object whose "messages" is a list'),
        (GOOD | {"messages": []}, "line 1: messages: must end with an assistant's reply"),
        (GOOD | {"messages": ["ho"]}, "line 1: messages[0]: a message is an object"),
        (GOOD | {"messages": [answer("4")]}, "line 1: messages[0]: roles out of order"),
        (GOOD | {"tools": 3}, 'line 1: its "tools" is not a list'),
        (GOOD | {"reasoning_effort": "most"}, "line 1: reasoning_effort must be one of"),
        (
            without(GOOD, "task"),
            "line 1: a chat has task, effort and date",
        ),
        (
            without(GOOD, "reasoning_effort"),
            "line 1: a chat has task",
        ),
        (without(GOOD, "date"), "line 1: a chat has task"),
        (chat(), "line 1: messages: must end with an assistant's reply"),
        (chat(answer([])), "line 1: messages[1]: a reply needs content"),
        (chat(answer([{"type": "text", "text": "4"}])), "line 1: does not end with the"),
        (chat(calling("calculate", "{}", "")[0]), "line 1: does not end with the"),
    ],
)
def test_a_file_that_cannot_be_scored_is_named(ossia_command, script, tmp_path, content, message):
    script()
    file = tmp_path / "chats.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result = ossia_command("score", "--data", file, "--model", "scripted", commands=app)
    assert (result.code, message in result.err, "chats.jsonl" in result.err) == (2, True, True)
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("chats.jsonl", "is what --data reads"), ("absent/wrong.jsonl", "not a file that can be")],
)
def test_where_wrong_answers_go_is_checked_first(
    ossia_command, script, tmp_path, monkeypatch, wrong, message
):
    script()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(GOOD))
    words = ["score", "--data", file, "--model", "scripted", "--wrong", wrong]
    result = ossia_command(*words, commands=app)
    assert (result.code, message in result.err) == (2, True)
    assert file.read_text() == json.dumps(GOOD)
