"""A step in which each sequence makes one token, in memory that stays where it is, so that a
backend can record it once and run it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ossia.ops.paged import LayerKind, PagedKV, PagePool

if TYPE_CHECKING:
    from ossia.model import Decoder


class Decoding:
    """A step of `batch` sequences; page tables have `columns` columns.

    While it is in use the decoder's weights must stay where they are; changed in place, the next
    step sees them. Once a module has a forward hook, steps are no longer run from the record.
    """

    def __init__(self, decoder: Decoder, pool: PagePool, batch: int, columns: int) -> None:
        self._decoder = decoder
        self._modules = list(decoder.modules())
        device = decoder.device
        self._pool = pool
        self._tables = {
            kind: torch.zeros((batch, columns), dtype=torch.int32, device=device)
            for kind in pool.kinds
        }
        self._lengths = torch.ones(batch, dtype=torch.int64, device=device)
        self._counts = torch.ones_like(self._lengths)
        zeros = torch.zeros_like(self._lengths)
        self._x = decoder.embed(zeros, zeros)
        self._rotations = decoder.rotations(zeros)
        self._logits: Tensor | None = None
        self._again = None
        self.recordable = True

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
        decoder = self._decoder
        self._x.copy_(decoder.embed(tokens, positions))
        for size, turns in decoder.rotations(positions).items():
            for stays, new in zip(self._rotations[size], turns, strict=True):
                stays.copy_(new)
        for kind, table in tables.items():
            self._tables[kind][:, : table.shape[1]] = table
        self._lengths.copy_(lengths)
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._modules):
            return self._step()
        if self._again is None:
            capture = decoder.ops.capture
            assert capture is not None
            self._logits, self._again = capture(self._step)
            self.recordable = self._again is not None
        else:
            self._again()
        assert self._logits is not None
        return self._logits

    def _step(self) -> Tensor:
        decoder = self._decoder
        kv = PagedKV(self._pool, self._tables, self._lengths, self._counts)
        return decoder.unembed(decoder.transform(self._x, self._rotations, kv))
