"""One forward pass over a batch of chunks: packs tokens, positions and page tables, returns the
logits of those that sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.engine.decoding import Decoding
from ossia.engine.pages import PageAllocator
from ossia.engine.scheduler import Chunk
from ossia.ops.paged import LayerKind, PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder

# Of more sequences the interpreter's share is small, and the memory that a record holds is not.
MOST_RECORDED = 16


class Runner:
    """A decoder, and the pool that its keys and values go to."""

    def __init__(self, decoder: Decoder, pool: PagePool, pages: PageAllocator) -> None:
        self.decoder = decoder
        self.pool = pool
        self.pages = pages
        self.device = decoder.device
        self._records = decoder.ops.capture is not None
        self._recorded: dict[int, Decoding] = {}  # by the number of sequences

    def run(self, batch: list[Chunk]) -> Tensor:
        """Read the batch's tokens; float32 logits (chunks that sample, vocab), in their order.

        They are valid until the next call.
        """
        tokens = self._ids([token for c in batch for token in c.sequence.tokens[c.start : c.end]])
        lengths = self._ids([chunk.end for chunk in batch])
        tables = self._tables(batch)
        decodes = len(tokens) == len(batch) and all(chunk.samples for chunk in batch)
        if decodes and self._records and len(batch) <= MOST_RECORDED:
            return self._decode(tokens, lengths, tables)
        counts = torch.tensor([chunk.count for chunk in batch])
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in batch])
        # Only a sequence's last token says what comes next, and unembedding is dear.
        ends = counts.cumsum(0) - 1
        rows = ends[torch.tensor([chunk.samples for chunk in batch])].to(self.device)
        kv = PagedKV(self.pool, tables, lengths, counts.to(self.device))
        hidden = self.decoder.hidden_states(tokens, positions.to(self.device), kv)
        return self.decoder.unembed(hidden[rows])

    def _decode(self, tokens: Tensor, lengths: Tensor, tables: dict[LayerKind, Tensor]) -> Tensor:
        """A step in which each sequence reads one token and samples the next."""
        batch = len(tokens)
        if batch not in self._recorded:
            columns = self.pages.columns
            self._recorded[batch] = Decoding(self.decoder, self.pool, batch, columns)
        decoding = self._recorded[batch]
        logits = decoding.run(tokens, lengths - 1, tables, lengths)
        if not decoding.recordable:
            self._records = False
            self._recorded.clear()
        return logits

    def _ids(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values).to(self.device)

    def _tables(self, batch: list[Chunk]) -> dict[LayerKind, Tensor]:
        tables = self.pages.tables(
            [chunk.sequence.id for chunk in batch], max(chunk.end for chunk in batch)
        )
        return {kind: table.to(self.device) for kind, table in tables.items()}
