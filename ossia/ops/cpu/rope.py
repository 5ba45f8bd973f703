"""Rotary position embeddings. Frequencies, YaRN's included, come from `ossia.ops.rope`."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import RoPE
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import is_native, machine
from ossia.ops.rope import attention_factor, frequencies
from ossia.ops.values import RopeTable


class Rotary(Backend):
    """The native rotary table and rotation."""

    def rope_table(self, positions: Tensor, rope: RoPE, head_dim: int) -> RopeTable:
        """As Backend.rope_table, each number within 0.51 units of its last place."""
        if positions.dtype is not torch.int64 or not positions.is_cpu or head_dim < 2:
            return super().rope_table(positions, rope, head_dim)
        positions = positions.contiguous()
        cos = torch.empty(*positions.shape, head_dim // 2, dtype=torch.float32)
        table = RopeTable(cos, torch.empty_like(cos))
        steps = frequencies(rope, head_dim, positions.device)
        machine().rope_table(positions, steps, attention_factor(rope), *table)
        return table

    def rotate(self, x: Tensor, rope: RopeTable) -> Tensor:
        """As Backend.rotate; natively for packed tokens."""
        cos, sin = rope
        if x.dim() != 3 or not x.numel() or not is_native(x) or cos.dtype is not torch.float32:
            return super().rotate(x, rope)
        x, out = x.contiguous(), torch.empty_like(x)
        machine().rotate(x, cos.contiguous(), sin.contiguous(), out)
        return out
