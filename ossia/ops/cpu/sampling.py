"""Sampling without a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import _native
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import machine
from ossia.ops.sampling import SamplingTable


class Sampling(Backend):
    """Native sampling."""

    def sample(self, logits: Tensor, table: SamplingTable) -> Tensor:
        """As Backend.sample, the same ids. The logits change during the call and change back."""
        if not logits.is_cpu:
            return super().sample(logits, table)
        edits = _native.Edits()
        if (some := table.edits) is not None:
            edits = _native.Edits(
                some.rows,
                some.lengths,
                some.ids,
                some.biases,
                some.counts,
                some.repetition,
                some.frequency,
                some.presence,
            )
        rows = _native.SamplingTable(
            table.scale,
            table.top_k,
            table.top_p,
            table.log2_min_p,
            table.uniforms,
            table.bits,
            edits,
        )
        ids = torch.empty(len(logits), dtype=torch.int64)
        if logits.numel():
            machine().sample(logits.float().contiguous(), rows, ids)
        return ids
