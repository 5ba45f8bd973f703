"""One forward pass over a batch of chunks: packs tokens, positions and page tables, returns the
logits of those that sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.engine.decoding import Decoding
from ossia.engine.kv import KVCache
from ossia.engine.scheduler import Chunk
from ossia.ops.paged import LayerKind, PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder

# Of more sequences the interpreter's share is small, and the memory that a record holds is not.
MOST_RECORDED = 16


class Runner:
    """A decoder, and the pool that its keys and values go to."""

    def __init__(self, decoder: Decoder, pool: PagePool, kv: KVCache) -> None:
        self.decoder = decoder
        self.pool = pool
        self.kv = kv
        self.device = decoder.device
        self._records = decoder.ops.recorder() is not None
        self._recorded: dict[int, Decoding] = {}  # by the number of sequences

    def run(self, batch: list[Chunk]) -> Tensor:
        """Read the batch's tokens; float32 logits (positions wanted, vocab), in order.

        They are valid until the next call.
        """
        tokens = self._ids([token for c in batch for token in c.tokens])
        lengths = self._ids([chunk.end for chunk in batch])
        tables = self._tables(batch)
        decodes = len(tokens) == len(batch) and all(chunk.wanted == 1 for chunk in batch)
        if decodes and self._records and len(batch) <= MOST_RECORDED:
            return self._decode(tokens, lengths, tables)
        counts = torch.tensor([len(chunk.tokens) for chunk in batch])
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in batch])
        # Unembedding is expensive: only the positions whose logits are wanted.
        rows, end = [], 0
        for chunk in batch:
            end += len(chunk.tokens)
            rows += range(end - chunk.wanted, end)
        kv = PagedKV(self.pool, tables, lengths, counts.to(self.device))
        context = self.decoder.context(tokens, positions.to(self.device), kv)
        hidden = self.decoder.hidden_states(tokens, context)
        return self.decoder.unembed(hidden[self._ids(rows)])

    def _decode(self, tokens: Tensor, lengths: Tensor, tables: dict[LayerKind, Tensor]) -> Tensor:
        """A step in which each sequence reads one token and samples the next."""
        batch = len(tokens)
        if batch not in self._recorded:
            columns = self.kv.limits.columns
            self._recorded[batch] = Decoding(self.decoder, self.pool, batch, columns)
        decoding = self._recorded[batch]
        logits = decoding.run(tokens, lengths - 1, tables, lengths)
        if not decoding.recordable:
            self._records = False
            self._recorded.clear()
        return logits

    def _ids(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device)

    def _tables(self, batch: list[Chunk]) -> dict[LayerKind, Tensor]:
        tables = self.kv.tables(
            [chunk.sequence.text for chunk in batch], max(chunk.end for chunk in batch)
        )
        return {kind: table.to(self.device) for kind, table in tables.items()}
