"""Shards come back as written, documents are told apart, a batch depends only on its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ossia.errors import OssiaError
from ossia.text.tokenizer import END_OF_TEXT
from ossia.train.corpus import shards, vocabulary
from ossia.train.corpus.documents import Document
from ossia.train.corpus.shards import Batches, TextBatches, documents_in
from ossia.train.settings import Settings


def test_documents_follow_a_separator() -> None:
    tokenizer = vocabulary.learn(["abc abc"], vocabulary.SMALLEST_VOCABULARY)
    end = vocabulary.control_id(tokenizer, END_OF_TEXT)
    documents = [Document("a", "ab"), Document("b", "<|endoftext|>")]
    tokens = shards.encode(documents, tokenizer, end)
    assert tokens[0] == end
    assert tokens[3] == end
    assert tokenizer.decode(tokens[1:3].tolist()) == "ab"
    assert documents_in(tokens[None], end)[0, :4].tolist() == [1, 1, 1, 2]
    assert (documents_in(tokens[None], end)[0, 3:] == 2).all()  # typed text is no control token


def test_encoding_in_parts_is_encoding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = vocabulary.learn(["abc abc"], vocabulary.SMALLEST_VOCABULARY)
    documents = [Document(str(i), "abc" * i) for i in range(1, 9)]
    monkeypatch.setattr(shards, "_CHARACTERS_AT_ONCE", 12)
    parts = list(shards.encode_in_parts(documents, tokenizer, 5))
    assert len(parts) > 2
    assert torch.equal(torch.cat(parts), shards.encode(documents, tokenizer, 5))


@pytest.mark.parametrize(("vocab", "kind"), [(50_000, "uint16"), (70_000, "int32")])
def test_ids_come_back_from_several_files(
    tmp_path: Path, vocab: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SHARD_TOKENS", 100)
    parts = [torch.randint(vocab, (n,), dtype=torch.int32) for n in (30, 90, 5, 200, 7)]
    assert shards.write(tmp_path / "tokens", parts, vocab) == 332
    assert json.loads((tmp_path / "tokens" / "index.json").read_text())["type"] == kind
    found = shards.read(tmp_path / "tokens")
    assert [len(shard) for shard in found] == [120, 205, 7]
    assert torch.equal(torch.cat([shard.int() for shard in found]), torch.cat(parts))
    with (tmp_path / "tokens" / "00001.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(OssiaError, match=r"00001\.bin: the run's 205 tokens are gone or damaged"):
        shards.read(tmp_path / "tokens")
    (tmp_path / "tokens" / "index.json").unlink()
    with pytest.raises(OssiaError, match="not an index of tokens"):
        shards.read(tmp_path / "tokens")


def test_every_shard_is_read_and_no_window_crosses_two() -> None:
    parts = [torch.arange(0, 100), torch.arange(1000, 1050), torch.arange(2000, 2010)]
    batches = Batches(parts, 1, 8, seed=0)
    assert batches.windows == 11 + 5  # the last is too short for a window after any offset
    rows = [batches(i)[0][0] for i in range(batches.windows)]
    assert all(torch.equal(row, torch.arange(8) + row[0]) for row in rows)
    assert len({int(row[0]) for row in rows}) == batches.windows
    assert {int(row[0]) // 1000 for row in rows} == {0, 1}


def test_batches_depend_only_on_their_number() -> None:
    tokens = torch.arange(1000, dtype=torch.int32)
    batches = Batches([tokens], 4, 16, seed=1)
    in_order = [batches(i)[0] for i in range(40)]
    for number in (39, 0, 17):
        assert torch.equal(Batches([tokens], 4, 16, seed=1)(number)[0], in_order[number])
    assert not torch.equal(Batches([tokens], 4, 16, seed=2)(0)[0], in_order[0])


def test_one_pass_reads_every_window_once_and_targets_are_one_ahead() -> None:
    tokens = torch.arange(1000, dtype=torch.int32)
    batches = Batches([tokens], 1, 16, seed=0)
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
        Batches([torch.zeros(32, dtype=torch.int32)], 1, 16, seed=0)


def test_measurements_may_take_steps_after_the_last() -> None:
    settings = Settings(data="-", steps=2, batch_size=1, length=8)
    batches = TextBatches([torch.arange(100, dtype=torch.int32)], settings, separator=0)
    assert batches(5).inputs.shape == (1, 8)
