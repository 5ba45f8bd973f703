"""Conversations packed into rows of equal length, on disk, and the batch of rows of each step."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ossia.train.corpus import shards
from ossia.train.corpus.conversations import Example
from ossia.train.corpus.shards import Batch
from ossia.train.evaluate import SummedLoss
from ossia.train.loss import IGNORED
from ossia.train.settings import derived_seed

_COLUMNS = ("inputs", "targets", "documents")
_TOKENS_AT_ONCE = 4096


def pack(lengths: Sequence[int], length: int) -> list[list[int]]:
    """The indices of the texts in each row: from the longest on, each text goes into the fullest
    row with room for it (best fit decreasing; Ding et al. 2024, https://arxiv.org/abs/2404.10830).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, index) of each row that is not full, sorted
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        size = lengths[number]
        place = bisect_left(room, (size, 0))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = length, len(rows)
            rows.append([])
        rows[row].append(number)
        if left > size:
            insort(room, (left - size, row))
    return rows


def write(folder: Path, examples: Sequence[Example], length: int) -> int:
    """Write texts of at most `length` tokens as rows into a new folder; returns their number."""
    folder.mkdir()
    packed = pack([len(example) for example in examples], length)
    for column, name in enumerate(_COLUMNS):
        rows = (_row([examples[n] for n in row], length)[column] for row in packed)
        shards.write(folder / name, rows, None)
    return len(packed)


def _row(examples: Sequence[Example], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and documents (length,). Texts are numbered from 1; padding has the next
    number and no targets.
    """
    inputs = torch.zeros(length, dtype=torch.int64)
    targets = torch.full((length,), IGNORED)
    documents = torch.full((length,), len(examples) + 1)
    start = 0
    for number, example in enumerate(examples, start=1):
        place = slice(start, start + len(example))
        inputs[place], targets[place], documents[place] = example.inputs, example.targets, number
        start += len(example)
    return inputs, targets, documents


def batches(examples: Sequence[Example], length: int) -> list[Batch]:
    """The same rows in memory, one per batch."""
    packed = pack([len(example) for example in examples], length)
    rows = (_row([examples[n] for n in row], length) for row in packed)
    return [Batch(*(column[None] for column in row)) for row in rows]


class Rows:
    """The rows that `write` wrote, memory-mapped. A batch is a function of the step: every pass
    takes all rows in an order drawn from `seed` and the number of the pass.
    """

    def __init__(self, folder: Path, length: int, batch_size: int = 1, seed: int = 0) -> None:
        self.batch_size, self.seed = batch_size, seed
        columns = [shards.read(folder / name) for name in _COLUMNS]
        self._columns = [[part.view(-1, length) for part in column] for column in columns]
        self._counts = [len(part) for part in self._columns[0]]
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return sum(self._counts)

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size
        return self.batch([self._drawn(n) for n in range(first, first + self.batch_size)])

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows, without the padding that they share."""
        inputs, targets, documents = (
            torch.stack([self._row(column, row) for row in rows]).long() for column in self._columns
        )
        used = int((targets != IGNORED).any(0).nonzero().max()) + 1
        return Batch(inputs[:, :used], targets[:, :used], documents[:, :used])

    def __iter__(self) -> Iterator[Batch]:
        """All rows once, in order, some thousand tokens at a time."""
        count = max(1, _TOKENS_AT_ONCE // self._columns[0][0].shape[1])
        for first in range(0, len(self), count):
            yield self.batch(range(first, min(first + count, len(self))))

    def _drawn(self, index: int) -> int:
        epoch, place = divmod(index, len(self))
        if epoch != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            self._order = torch.randperm(len(self), generator=generator)
            self._pass = epoch
        return int(self._order[place])

    def _row(self, column: list[Tensor], row: int) -> Tensor:
        for part, count in zip(column, self._counts, strict=True):
            if row < count:
                return part[row]
            row -= count
        raise IndexError(row)


@torch.no_grad()
def nats_per_token(loss: SummedLoss, batches: Iterable[Batch]) -> float:
    """The mean loss of all targets."""
    total, count = 0.0, 0
    for batch in batches:
        total += loss(batch.inputs, batch.targets, batch.documents).item()
        count += int((batch.targets != IGNORED).sum())
    return total / count
