"""What stands between the two matrices of a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import reference
from ossia.ops.cpu.native import TYPES, is_native, machine


def gelu(x: Tensor) -> Tensor:
    """As `reference.gelu`."""
    if not is_native(x):
        return reference.gelu(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    machine().gelu(x.data_ptr(), out.data_ptr(), TYPES[x.dtype], x.numel())
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As `reference.swiglu`."""
    if gate.shape != up.shape or not is_native(gate, up):
        return reference.swiglu(gate, up)
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    machine().swiglu(
        gate.data_ptr(), up.data_ptr(), out.data_ptr(), TYPES[gate.dtype], gate.numel()
    )
    return out


def clamped_swiglu(gate: Tensor, up: Tensor, *, limit: float, alpha: float) -> Tensor:
    """As `reference.clamped_swiglu`."""
    if gate.shape != up.shape or not is_native(gate, up):
        return reference.clamped_swiglu(gate, up, limit=limit, alpha=alpha)
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    machine().clamped_swiglu(
        gate.data_ptr(),
        up.data_ptr(),
        out.data_ptr(),
        TYPES[gate.dtype],
        gate.numel(),
        limit,
        alpha,
    )
    return out
