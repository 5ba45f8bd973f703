"""The gated activations of a feed-forward network."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.backend import Backend
from ossia.ops.triton.launch import ceil_div, launch, runs

_WIDTH = 1024  # numbers of one program


@triton.jit
def _gated(
    gates, ups, out, count, limit, alpha,
    WIDTH: tl.constexpr, CLAMPED: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = place < count
    gate = tl.load(gates + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups + place, mask=inside, other=0.0).to(tl.float32)
    if CLAMPED:
        # Comparisons let NaN through, as torch.clamp does.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up)) + 1
        gate = gate / (1 + tl.exp(-alpha * gate))
    else:
        gate = gate / (1 + tl.exp(-gate))
    tl.store(out + place, (gate * up).to(out.dtype.element_ty), mask=inside)


class Activations(Backend):
    """SwiGLU and gpt-oss's form of it, each in one pass."""

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        """As Backend.gated; rounded once."""
        same = gate.shape == up.shape and gate.dtype is up.dtype
        if not same or not gate.numel() or not runs(gate, up):
            return super().gated(gate, up, activation)
        clamped = isinstance(activation, ClampedSwiGLU)
        limit, alpha = (activation.limit, activation.alpha) if clamped else (0.0, 0.0)
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        count = gate.numel()
        launch(
            _gated, (ceil_div(count, _WIDTH),), gate.contiguous(), up.contiguous(), out, count,
            limit, alpha, WIDTH=_WIDTH, CLAMPED=clamped,
        )  # fmt: skip
        return out
