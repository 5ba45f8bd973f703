"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia.config import LayerNorm as LayerNormConfig
from ossia.config import Norm as NormConfig
from ossia.config import RMSNorm as RMSNormConfig
from ossia.config import Rounding
from ossia.ops import Backend, Norm


class LayerNorm(nn.Module):
    """Normalises mean and variance, with weight and bias."""

    def __init__(self, norm: LayerNormConfig, size: int, ops: Backend) -> None:
        super().__init__()
        self.ops, self.eps = ops, norm.eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    @property
    def value(self) -> Norm:
        """For the operations that normalise first."""
        return Norm(self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.norm(x, self.value)


class RMSNorm(nn.Module):
    """Normalises the root mean square, with weight."""

    def __init__(self, norm: RMSNormConfig, size: int, ops: Backend) -> None:
        super().__init__()
        self.ops, self.eps = ops, norm.eps
        self.round_before_weight = norm.rounding is Rounding.BEFORE_WEIGHT
        self.weight = nn.Parameter(torch.empty(size))

    @property
    def value(self) -> Norm:
        """For the operations that normalise first."""
        return Norm(self.weight, None, self.eps, self.round_before_weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.norm(x, self.value)


def build_norm(norm: NormConfig, size: int, ops: Backend) -> LayerNorm | RMSNorm:
    """The module for a norm config."""
    if isinstance(norm, LayerNormConfig):
        return LayerNorm(norm, size, ops)
    return RMSNorm(norm, size, ops)
