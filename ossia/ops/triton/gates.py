"""The gated activation of experts, as kernels compute it."""

from __future__ import annotations

import triton
import triton.language as tl

from ossia.config import ClampedSwiGLU, SwiGLU


@triton.jit
def gated(gate, up, limit, alpha, CLAMPED: tl.constexpr):
    """As Backend.gated, in float32. Bounds keep NaN."""
    if CLAMPED:
        gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL) + 1
        return gate / (1 + tl.exp(-alpha * gate)) * up
    else:
        return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def gated_slopes(slope, gate, up, limit, alpha, CLAMPED: tl.constexpr):
    """The gradients of `gated`'s gate and up by that of its result."""
    steep, offset, low, high = 1.0, 0.0, gate, up  # the gate and `up` within their bounds
    if CLAMPED:
        steep, offset = alpha, 1.0
        low = tl.minimum(gate, limit)
        high = tl.maximum(tl.minimum(up, limit), -limit)
    share = 1 / (1 + tl.exp(-steep * low))
    d_gate = slope * (high + offset) * share * (1 + steep * low * (1 - share))
    d_up = slope * low * share
    if CLAMPED:
        d_gate = tl.where(gate > limit, 0.0, d_gate)
        d_up = tl.where((up > limit) | (up < -limit), 0.0, d_up)
    return d_gate, d_up


def gate_arguments(activation: SwiGLU | ClampedSwiGLU) -> tuple[float, float, bool]:
    """limit, alpha and CLAMPED of an activation."""
    if isinstance(activation, ClampedSwiGLU):
        return activation.limit, activation.alpha, True
    return 0.0, 0.0, False
