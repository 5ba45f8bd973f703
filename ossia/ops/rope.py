"""The angles by which RoPE and YaRN rotate queries and keys."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ossia.config import RoPE, YaRN


@lru_cache(maxsize=16)
def frequencies(rope: RoPE, head_dim: int, device: torch.device) -> Tensor:
    """Radians per position for each pair of dimensions, float32 (head_dim/2,).

    Computed in float32, in the same steps as the reference implementations, and always on the CPU,
    because devices round powers differently: at position 100,000 the last bit of a frequency
    changes the angle by a hundredth of a radian.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    wavelengths = rope.theta**exponents  # over 2 pi
    if rope.yarn is None:
        return (1.0 / wavelengths).to(device)
    interpolated = 1.0 / (rope.yarn.factor * wavelengths)
    kept = 1.0 - _ramp(rope.theta, rope.yarn, head_dim)
    return (interpolated * (1 - kept) + (1.0 / wavelengths) * kept).to(device)


def _ramp(theta: float, yarn: YaRN, head_dim: int) -> Tensor:
    """(head_dim/2,) from 0 (frequency kept) to 1 (frequency divided by the factor)."""

    def dimension(rotations: float) -> float:
        """The pair that makes this many rotations over the original context."""
        turns = yarn.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width is a step
    dims = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    return ((dims - low) / (high - low)).clamp(0, 1)


def attention_factor(rope: RoPE) -> float:
    """YaRN's factor on cosines and sines, which keeps the entropy of attention: 0.1 ln s + 1 unless
    the config gives another.
    """
    if rope.yarn is None:
        return 1.0
    if rope.yarn.attention_factor is not None:
        return rope.yarn.attention_factor
    if rope.yarn.factor <= 1:
        return 1.0
    return 0.1 * math.log(rope.yarn.factor) + 1.0
