"""What is read, what is held out, and that batches depend on nothing but their number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.errors import OssiaError
from ossia.train import data, tokenizer
from ossia.train.data import Batches, Document


def test_the_library_is_split_by_module() -> None:
    corpus = data.read("stdlib")
    trained = {document.name for document in corpus.train}
    assert tuple(document.name for document in corpus.held_out) == data.STDLIB_HELD_OUT
    assert {"json/encoder.py", "dataclasses.py", "asyncio/events.py"} <= trained
    assert not trained & set(data.STDLIB_HELD_OUT)
    assert not any(name.startswith(("test/", "idlelib/", "site-packages/")) for name in trained)


def test_of_a_file_the_last_lines_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    text = "".join(f"line {i}\n" for i in range(400))
    file.write_text(text)
    corpus = data.read(str(file))
    (train,), (held_out,) = corpus.train, corpus.held_out
    assert train.text + held_out.text == text
    assert train.text.endswith("\n")
    assert len(held_out.text) == pytest.approx(len(text) / 20, abs=10)


def test_of_a_folder_the_same_files_stay_held_out_when_others_come(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text("text")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    before = {document.name for document in data.read(str(tmp_path)).held_out}
    assert len(before) == 2
    (tmp_path / "40.txt").write_text("text")
    assert len(before & {document.name for document in data.read(str(tmp_path)).held_out}) >= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "holds no text"),
        (b"one line only", "too few lines"),
        (b"good\n\xff\xfe", r"not UTF-8 text \(byte 5\)"),
    ],
)
def test_bad_text_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OssiaError, match=message) as error:
        data.read(str(file))
    assert "bad.txt" in str(error.value)


def test_documents_follow_a_separator_and_their_ids_come_back_from_the_file(tmp_path: Path) -> None:
    vocabulary = tokenizer.learn(["abc abc"], tokenizer.SMALLEST_VOCABULARY)
    end = tokenizer.control_id(vocabulary, tokenizer.END_OF_TEXT)
    tokens = data.encode([Document("a", "ab"), Document("b", "<|endoftext|>")], vocabulary, end)
    assert tokens[0] == end
    assert tokens[3] == end
    assert vocabulary.decode(tokens[1:3].tolist()) == "ab"
    data.write_tokens(tokens, tmp_path / "tokens")
    assert torch.equal(data.map_tokens(tmp_path / "tokens", len(tokens)), tokens)


def test_limited_keeps_whole_documents_or_the_beginning_of_the_first() -> None:
    documents = [Document("a", "aaaa"), Document("b", "bbbbbbbb"), Document("c", "cc")]
    assert [d.name for d in data.limited(documents, 6)] == ["a", "c"]
    assert data.limited([Document("ü", "üüü")], 3) == [Document("ü", "ü")]


def test_batches_depend_only_on_their_number() -> None:
    tokens = torch.arange(1000, dtype=torch.int32)
    batches = Batches(tokens, 4, 16, seed=1)
    in_order = [batches(i)[0] for i in range(40)]
    for number in (39, 0, 17):
        assert torch.equal(Batches(tokens, 4, 16, seed=1)(number)[0], in_order[number])
    assert not torch.equal(Batches(tokens, 4, 16, seed=2)(0)[0], in_order[0])


def test_one_pass_reads_every_window_once_and_targets_are_one_ahead() -> None:
    tokens = torch.arange(1000, dtype=torch.int32)
    batches = Batches(tokens, 1, 16, seed=0)
    passes = [
        torch.cat([batches(i)[0] for i in range(n * batches.windows, (n + 1) * batches.windows)])
        for n in range(2)
    ]
    for windows in passes:
        seen = windows.flatten().sort().values
        assert torch.equal(seen, torch.arange(int(seen[0]), int(seen[0]) + len(seen)))
        assert len(seen) >= len(tokens) - 2 * 16
    assert not torch.equal(*passes)
    inputs, targets = batches(0)
    assert torch.equal(inputs + 1, targets)


def test_too_little_text_for_a_window_is_refused() -> None:
    with pytest.raises(OssiaError, match="32 tokens, too few for windows of 16"):
        Batches(torch.zeros(32, dtype=torch.int32), 1, 16, seed=0)
