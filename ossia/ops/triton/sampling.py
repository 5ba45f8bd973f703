"""Sampling on the device, without a sort and without waiting for the host.

The ids are those of the definition. Top-k and top-p keep a prefix of the ranking, and the key at
its end is found four bits at a time, from the count and mass of the logits with each next digit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ossia.ops import sampling
from ossia.ops.backend import Backend
from ossia.ops.sampling import SamplingTable
from ossia.ops.triton import sampling_kernels as kernels
from ossia.ops.triton.launch import INTERPRETED, ceil_div, launch, power_of_2, runs

_PART = 256 if INTERPRETED else 4096  # logits of a program
_CHUNK = 256  # of them that a program counts at a time
_MOST_PARTS = 1024  # that one program adds up


class Sampling(Backend):
    """Sampling."""

    def sample(self, logits: Tensor, table: SamplingTable) -> Tensor:
        """As Backend.sample, the same ids."""
        vocab = logits.shape[1]
        if not logits.numel() or not runs(logits) or vocab > _MOST_PARTS * _PART:
            return super().sample(logits, table)
        edited = sampling.adjust(logits.float(), replace(table, bits=None)).contiguous()
        return _Rows(edited, table).sample()


class _Rows:
    """The logits of a batch, float32 (rows, vocab), and what its kernels share."""

    def __init__(self, logits: Tensor, table: SamplingTable) -> None:
        rows, self.vocab = logits.shape
        self.logits, self.table = logits, table
        self.parts = ceil_div(self.vocab, _PART)
        self.width = power_of_2(self.parts)
        bits = table.bits
        # Without bits, any pointer does.
        self.source = logits, logits if bits is None else bits.contiguous()
        self.options = {
            "PART": _PART,
            "BITS": bits is not None,
            # The definition rounds products and sums one by one.
            "enable_fp_fusion": False,
            "num_warps": 8,
        }
        self.largest = logits.new_empty(rows)
        self.ids = self._integers(rows)

    def _integers(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device=self.logits.device)

    def sample(self) -> Tensor:
        rows, table = len(self.logits), self.table
        values = self.logits.new_empty(rows, self.parts)
        places = torch.empty_like(values, dtype=torch.int32)
        launch(
            kernels.tops, (rows, self.parts), *self.source, values, places, self.vocab, self.parts,
            **self.options,
        )  # fmt: skip
        launch(
            kernels.greedy, (rows,), values, places, self.largest, self.ids, self.parts,
            WIDTH=self.width,
        )  # fmt: skip
        if len(table.sampled):
            self._draw()
        return self.ids

    def _draw(self) -> None:
        """Ids for the rows that are not greedy."""
        table, count = self.table, len(self.table.sampled)
        rows = len(self.logits)
        # The smallest key that each row keeps, and how many equal to it: all, in most rows.
        device = self.logits.device
        keys = torch.zeros(rows, dtype=torch.int64, device=device)
        equals = torch.zeros(rows, dtype=torch.int64, device=device)
        if len(table.ranked):
            self._limit(keys, equals)
        masses, counts = self._integers(count, self.parts), self._integers(count, self.parts)
        launch(
            kernels.weights, (count, self.parts), *self.source, self.largest, table.sampled,
            table.scale, table.log2_min_p, keys, masses, counts, self.vocab, self.parts,
            **self.options,
        )  # fmt: skip
        launch(
            kernels.pick, (count,), *self.source, self.largest, table.sampled, table.scale,
            table.log2_min_p, table.uniforms, keys, equals, masses, counts, self.ids, self.vocab,
            self.parts, WIDTH=self.width, **self.options,
        )  # fmt: skip

    def _limit(self, keys: Tensor, equals: Tensor) -> None:
        """Where top-k and top-p end the ranking."""
        table, count = self.table, len(self.table.ranked)
        counts = self._integers(2, count, self.parts, 16)
        masses = self._integers(2, count, self.parts, 16)
        states = self._integers(2, count, 4)
        wholes = torch.full((count,), -1, dtype=torch.int64, device=keys.device)
        found = self.largest, table.sampled, table.ranked, table.scale
        for by_mass in (False, True) if table.largest_k else (True,):
            for turn in range(kernels.DIGITS):
                launch(
                    kernels.search, (count, self.parts), *self.source, *found, table.top_k,
                    table.top_p, wholes, counts, masses, states, turn, self.vocab, self.parts,
                    count, CHUNK=_CHUNK, WIDTH=self.width, BY_MASS=by_mass, **self.options,
                )  # fmt: skip
            launch(
                kernels.limit, (count,), *found, wholes, counts, masses, states, keys,
                equals, self.vocab, self.parts, count, WIDTH=self.width, BY_MASS=by_mass,
                enable_fp_fusion=False,
            )  # fmt: skip
