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


def gate_arguments(activation: SwiGLU | ClampedSwiGLU) -> tuple[float, float, bool]:
    """limit, alpha and CLAMPED of an activation."""
    if isinstance(activation, ClampedSwiGLU):
        return activation.limit, activation.alpha, True
    return 0.0, 0.0, False
