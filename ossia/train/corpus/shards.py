"""Token ids on disk, memory-mapped, and batches as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ossia.errors import OssiaError
from ossia.system.files import read_json, write_file, write_json
from ossia.train.corpus.documents import Document
from ossia.train.settings import Settings, derived_seed

_SHARD_TOKENS = 1 << 27  # approximately: a shard ends with a document
_CHARACTERS_AT_ONCE = 1 << 22  # of text, encoded on all cores
_TYPES = {"uint16": torch.uint16, "int32": torch.int32}


def encode(documents: Iterable[Document], tokenizer: Tokenizer, separator: int) -> Tensor:
    """int32 (tokens,): each document follows a `separator`, which predicts its first token. Text
    that looks like a control token is encoded as text.
    """
    tokenizer.encode_special_tokens = True
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False):
        ids.append(separator)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int32)


def encode_in_parts(
    documents: Iterable[Document], tokenizer: Tokenizer, separator: int
) -> Iterable[Tensor]:
    """Like `encode`, some documents at a time."""
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(document.text)
        if size >= _CHARACTERS_AT_ONCE:
            yield encode(part, tokenizer, separator)
            part, size = [], 0
    if part:
        yield encode(part, tokenizer, separator)


def write(folder: Path, parts: Iterable[Tensor], vocab_size: int | None) -> int:
    """Write ids into a new folder as raw little-endian shards and an index; returns their number.
    Without `vocab_size` they are arbitrary 32-bit numbers.

    The index is written last: a folder without one is incomplete. A part is never split.
    """
    kind = "uint16" if vocab_size is not None and vocab_size <= 1 << 16 else "int32"
    folder.mkdir()
    shards: list[dict[str, int | str]] = []
    held: list[Tensor] = []
    size = 0

    def flush() -> None:
        ids = torch.cat(held).to(_TYPES[kind])
        name = f"{len(shards):05}.bin"
        write_file(folder / name, [ids.numpy().data])
        shards.append({"file": name, "tokens": len(ids)})
        held.clear()

    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _SHARD_TOKENS:
            flush()
            size = 0
    if held:
        flush()
    write_json(folder / "index.json", {"type": kind, "shards": shards})
    return sum(int(shard["tokens"]) for shard in shards)


def read(folder: Path) -> list[Tensor]:
    """The ids of each shard, (tokens,), memory-mapped."""
    index = folder / "index.json"
    try:
        described = read_json(index)
        dtype = _TYPES[described["type"]]
        shards = [(folder / shard["file"], int(shard["tokens"])) for shard in described["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OssiaError(
            f"{index}: not an index of tokens ({error}); start the run again"
        ) from error
    for file, count in shards:
        if not file.is_file() or file.stat().st_size != count * dtype.itemsize:
            raise OssiaError(
                f"{file}: the run's {count} tokens are gone or damaged; start it again"
            )
    return [
        torch.from_file(str(file), shared=False, size=count, dtype=dtype) for file, count in shards
    ]


def documents_in(tokens: Tensor, separator: int) -> Tensor:
    """int64 (rows, length): the number of each token's document, which begins with `separator`."""
    return (tokens == separator).cumsum(1)


@dataclass(frozen=True)
class Batch:
    """int64 (rows, length) each: targets are one token ahead of inputs, or IGNORED; `documents`
    numbers the texts packed in a row.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor


class TextBatches:
    """The batch of each step over a text: rows of `length` tokens, at the end of the run of
    `long_length`. Each document in the shards begins with `separator`. Steps after the last, which
    only measurements take, continue.
    """

    def __init__(self, shards: Sequence[Tensor], settings: Settings, separator: int) -> None:
        self._separator, self._short_steps = separator, settings.steps - settings.long_steps
        self._short = Batches(shards, settings.batch_size, settings.length, settings.seed)
        self._long: Batches | None = None
        if settings.long_length:
            rows = settings.rows[1]
            self._long = Batches(shards, rows, settings.long_length, settings.seed + 1)

    def __call__(self, step: int) -> Batch:
        late = step - self._short_steps
        if self._long is None or late < 0:
            inputs, targets = self._short(step)
        else:
            inputs, targets = self._long(late)
        return Batch(inputs, targets, documents_in(inputs, self._separator))


class Batches:
    """Batches as a function of their number, so a resumed run needs only its step.

    Each pass over the text cuts every shard into windows of `length` tokens from a random offset
    and visits them in random order, both drawn from `seed` and the number of the pass.
    """

    def __init__(self, shards: Sequence[Tensor], batch_size: int, length: int, seed: int) -> None:
        self.shards, self.batch_size, self.length, self.seed = shards, batch_size, length, seed
        # Whole windows of each shard after any offset below `length`.
        counts = [max(0, (len(shard) - 1) // length - 1) for shard in shards]
        self.windows = sum(counts)
        if not self.windows:
            raise OssiaError(
                f"the text has {sum(map(len, shards))} tokens, too few for windows of {length}; "
                "use a shorter --length or more text"
            )
        self._ends = torch.tensor(counts).cumsum(0)
        self._pass = -1
        self._offset = 0
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`: int64 inputs and targets, each (batch_size, length), the targets one
        token ahead.
        """
        first = number * self.batch_size
        rows = [self._window(index) for index in range(first, first + self.batch_size)]
        windows = torch.stack(rows)
        return windows[:, :-1], windows[:, 1:]

    def _window(self, index: int) -> Tensor:
        epoch, place = divmod(index, self.windows)
        if epoch != self._pass:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            self._offset = int(torch.randint(self.length, (1,), generator=generator))
            self._order = torch.randperm(self.windows, generator=generator)
            self._pass = epoch
        window = int(self._order[place])
        shard = int(torch.searchsorted(self._ends, window, right=True))
        before = int(self._ends[shard - 1]) if shard else 0
        start = self._offset + self.length * (window - before)
        return self.shards[shard][start : start + self.length + 1].long()
