"""One forward pass over a batch of chunks: packs tokens, positions and page tables, returns the
logits of those that sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.engine.pages import PageAllocator
from ossia.engine.scheduler import Chunk
from ossia.ops.paged import PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


class Runner:
    """A decoder, and the pool that its keys and values go to."""

    def __init__(self, decoder: Decoder, pool: PagePool, pages: PageAllocator) -> None:
        self.decoder = decoder
        self.pool = pool
        self.pages = pages
        self.device = decoder.device

    def run(self, batch: list[Chunk]) -> Tensor:
        """Read the batch's tokens; float32 logits (chunks that sample, vocab), in their order."""
        tokens = [token for c in batch for token in c.sequence.tokens[c.start : c.end]]
        positions = torch.cat([torch.arange(chunk.start, chunk.end) for chunk in batch])
        query_lengths = torch.tensor([chunk.count for chunk in batch])
        # Only a sequence's last token says what comes next, and unembedding is dear.
        ends = query_lengths.cumsum(0) - 1
        rows = ends[torch.tensor([chunk.samples for chunk in batch])]
        hidden = self.decoder.hidden_states(
            torch.tensor(tokens).to(self.device), positions.to(self.device), self._kv(batch)
        )
        return self.decoder.unembed(hidden[rows.to(self.device)])

    def _kv(self, batch: list[Chunk]) -> PagedKV:
        tables = self.pages.tables(
            [chunk.sequence.id for chunk in batch], max(chunk.end for chunk in batch)
        )
        return PagedKV(
            self.pool,
            {kind: table.to(self.device) for kind, table in tables.items()},
            torch.tensor([chunk.end for chunk in batch]).to(self.device),
            torch.tensor([chunk.count for chunk in batch]).to(self.device),
        )
