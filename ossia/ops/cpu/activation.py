"""The functions between the two matrices of a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import TYPES, is_native, machine


class Activations(Backend):
    """Native GELU and SwiGLU."""

    def gelu(self, x: Tensor) -> Tensor:
        """As Backend.gelu."""
        if not is_native(x):
            return super().gelu(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        machine().gelu(x.data_ptr(), out.data_ptr(), TYPES[x.dtype], x.numel())
        return out

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        """As Backend.gated."""
        if gate.shape != up.shape or not is_native(gate, up):
            return super().gated(gate, up, activation)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        where = gate.data_ptr(), up.data_ptr(), out.data_ptr(), TYPES[gate.dtype], gate.numel()
        if isinstance(activation, ClampedSwiGLU):
            machine().clamped_swiglu(*where, activation.limit, activation.alpha)
        else:
            machine().swiglu(*where)
        return out
