"""The functions between the two matrices of a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import is_native, machine


class Activations(Backend):
    """Native GELU and SwiGLU."""

    def gelu(self, x: Tensor) -> Tensor:
        """As Backend.gelu."""
        if not is_native(x):
            return super().gelu(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        machine().gelu(x, out)
        return out

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        """As Backend.gated."""
        if gate.shape != up.shape or not is_native(gate, up):
            return super().gated(gate, up, activation)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        if isinstance(activation, ClampedSwiGLU):
            machine().clamped_swiglu(gate, up, out, activation.limit, activation.alpha)
        else:
            machine().swiglu(gate, up, out)
        return out
