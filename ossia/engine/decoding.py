"""A step in which each sequence makes one token, in memory that stays where it is, so that a
backend can record it once and run it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.ops import Recorded
from ossia.ops.paged import LayerKind, PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


class Decoding:
    """A step of `batch` sequences; page tables have `columns` columns.

    While it is in use the decoder's weights must stay where they are; changed in place, the next
    step sees them.
    """

    def __init__(self, decoder: Decoder, pool: PagePool, batch: int, columns: int) -> None:
        self._decoder = decoder
        self._recorder = decoder.ops.recorder()
        device = decoder.device
        self._pool = pool
        self._tables = {
            kind: torch.zeros((batch, columns), dtype=torch.int32, device=device)
            for kind in pool.kinds
        }
        self._tokens, self._positions = torch.zeros(2, batch, dtype=torch.int64, device=device)
        self._lengths = torch.ones(batch, dtype=torch.int64, device=device)
        self._counts = torch.ones_like(self._lengths)
        self._recorded: Recorded | None = None
        self.recordable = True
        # What a backend computes once, such as RoPE's frequencies, is no part of a step.
        decoder.context(self._tokens, self._positions)

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        tables: Mapping[LayerKind, Tensor],
        lengths: Tensor,
    ) -> Tensor:
        """Float32 logits (batch, vocab), valid until the next call.

        int64 (batch,) each; tables: int32 (batch, as many columns as there are pages).
        """
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        for kind, table in tables.items():
            self._tables[kind][:, : table.shape[1]] = table
        self._lengths.copy_(lengths)
        if self._recorded is None and self.recordable:
            assert self._recorder is not None
            self._recorded = self._recorder.record(self._step)
            self.recordable = self._recorded is not None
        elif self._recorded is not None:
            self._recorded.replay()
        return self._step() if self._recorded is None else self._recorded.result

    def _step(self) -> Tensor:
        kv = PagedKV(self._pool, self._tables, self._lengths, self._counts)
        context = self._decoder.context(self._tokens, self._positions, kv)
        return self._decoder.unembed(self._decoder.hidden_states(self._tokens, context))
