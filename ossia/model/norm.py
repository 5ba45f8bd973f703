"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia import config
from ossia.config import Rounding
from ossia.ops import Backend


class LayerNorm(nn.Module):
    """Mean and variance, with weight and bias."""

    def __init__(self, norm: config.LayerNorm, size: int, ops: Backend) -> None:
        super().__init__()
        self.ops, self.eps = ops, norm.eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root mean square, with weight."""

    def __init__(self, norm: config.RMSNorm, size: int, ops: Backend) -> None:
        super().__init__()
        self.ops, self.eps = ops, norm.eps
        self.round_before_weight = norm.rounding is Rounding.BEFORE_WEIGHT
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(
            x, self.weight, self.eps, round_before_weight=self.round_before_weight
        )


def build_norm(norm: config.Norm, size: int, ops: Backend) -> LayerNorm | RMSNorm:
    """The module that a config's norm describes."""
    if isinstance(norm, config.LayerNorm):
        return LayerNorm(norm, size, ops)
    return RMSNorm(norm, size, ops)
