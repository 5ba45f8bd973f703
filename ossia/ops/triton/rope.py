"""Rotary position embeddings. Frequencies, YaRN's included, come from `ossia.ops.rope`; attention
rotates as it reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.config import RoPE
from ossia.ops.backend import Backend
from ossia.ops.rope import attention_factor, frequencies
from ossia.ops.triton.launch import ceil_div, launch, launches_on, power_of_2
from ossia.ops.values import RopeTable

_TOKENS = 4  # of one program


@triton.jit
def _rope_table(
    positions, steps, cos, sin, factor, count, half, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, WIDTH)[None, :]
    step = tl.load(steps + pair, mask=pair < half, other=0.0)
    position = tl.load(positions + token, mask=token < count, other=0).to(tl.float32)
    angle = position[:, None] * step
    mask = (token < count)[:, None] & (pair < half)
    place = token[:, None].to(tl.int64) * half + pair
    tl.store(cos + place, tl.cos(angle) * factor, mask=mask)
    tl.store(sin + place, tl.sin(angle) * factor, mask=mask)


class Rotary(Backend):
    """The rotary table in one launch."""

    def rope_table(self, positions: Tensor, rope: RoPE, head_dim: int) -> RopeTable:
        """As Backend.rope_table."""
        half, count = head_dim // 2, positions.numel()
        usable = positions.dtype is torch.int64 and launches_on(positions.device)
        if not usable or not count or not half:
            return super().rope_table(positions, rope, head_dim)
        shape = (*positions.shape, half)
        cos, sin = (torch.empty(shape, device=positions.device) for _ in range(2))
        launch(
            _rope_table, (ceil_div(count, _TOKENS),), positions.contiguous(),
            frequencies(rope, head_dim, positions.device), cos, sin,
            attention_factor(rope), count, half, TOKENS=_TOKENS, WIDTH=power_of_2(half),
        )  # fmt: skip
        return RopeTable(cos, sin)
