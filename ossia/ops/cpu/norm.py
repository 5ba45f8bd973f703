"""Norms and rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import RoPE
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import is_native, machine
from ossia.ops.rope import attention_factor, frequencies
from ossia.ops.values import RopeTable


class Norms(Backend):
    """Native norms and rotation."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """As Backend.rms_norm."""
        if not x.numel() or not is_native(x, weight):
            return super().rms_norm(x, weight, eps, round_before_weight=round_before_weight)
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        machine().rms_norm(x, weight, out, eps, round_before_weight)
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """As Backend.layer_norm."""
        if not x.numel() or not is_native(x, weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        out = torch.empty_like(x)
        machine().layer_norm(x, weight, bias, out, eps)
        return out

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
