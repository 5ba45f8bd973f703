"""`ossia finetune` from its options to its record, and its one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LINE = {
    "messages": [
        {"role": "user", "content": "ping"},
        {"role": "assistant", "content": "pong"},
    ]
}


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n" * 8)
    return file


@pytest.fixture
def long_folder(model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with room for harmony's system message, a byte a token."""
    import shutil

    folder = tmp_path / "long"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return folder


def test_it_trains_and_prints_the_record(
    ossia_command, long_folder: Path, chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["finetune", "--model", long_folder, "--data", chats, "--out", out, "--steps", 4]
    words += ["--lr", "1e-3", "--warmup", 1, "--eval-every", 2, "--batch-size", 2]
    done = ossia_command(*words, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record == json.loads((out / "record.json").read_text())
    assert record["held_out_loss"]["as_trained"] < record["held_out_loss"]["before"]
    assert "--steps 4" in record["command"]
    assert "of memory (weights" in done.err
    assert "step 2: loss" in done.err
    assert "nats per token" in done.err
    again = ossia_command("finetune", "--resume", "--out", out)
    assert again.code == 2
    assert "holds a finished run" in again.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "chats.jsonl"], "--model is needed"),
        (["--model", "long"], "--data is needed"),
        (["--model", "long", "--data", "bad.jsonl"], "bad.jsonl, line 2: messages[1]: a tool's"),
        (["--model", "long", "--data", "chats.jsonl", "--length", "9"], "line 1: 2"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, ossia_command, long_folder, chats, tmp_path, monkeypatch
) -> None:
    bad = {"messages": [LINE["messages"][0], {"role": "tool", "content": ""}, LINE["messages"][1]]}
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(LINE)}\n{json.dumps(bad)}\n")
    monkeypatch.chdir(tmp_path)
    done = ossia_command("finetune", *words, "--eval-share", 0, "--out", "new")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not (tmp_path / "new").exists()
