"""Weights that training rounds to MXFP4, as they will be saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.packing import quantize, quantize_matrix, unpack
from ossia.ops.weight import (
    Matrices,
    MatrixKind,
    Tensors,
    Weight,
    dense,
    recipe_of,
    tensors_of,
)


@dataclass(frozen=True)
class Rounded(MatrixKind):
    """A matrix, or a stack, rounded to MXFP4 with the gradient of the identity (straight-through
    estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432).

    For a low-rank update, the sum of base and update is rounded; the effect of dropout on the
    update is added to the product with the rounded sum.
    """

    weight: Tensor | LowRank

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def __getitem__(self, index: int) -> Rounded:
        """One matrix of a stack."""
        return Rounded(self.weight[index])

    def linear(self, x: Tensor) -> Tensor:
        """See MatrixKind."""
        weight = self.weight
        if isinstance(weight, Tensor):
            return F.linear(x, round_trip(weight))
        out = _RoundedSum.apply(x, weight.a, weight.b, weight)
        read = weight.read(x)
        return out if read is x else torch.add(out, weight.update(read - x), alpha=weight.scale)

    def dense(self) -> Tensor:
        """The matrix before rounding, which saving packs."""
        return dense(self.weight)

    def unbind(self) -> Matrices:
        if isinstance(self.weight, Tensor):
            return round_trip(self.weight).unbind()
        return [Rounded(one) for one in self.weight.unbind()]

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.weight)

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_built, recipe_of(self.weight))


def _built(inner: Callable[[Tensors], Weight], tensors: Tensors) -> Rounded:
    weight = inner(tensors)
    assert isinstance(weight, Tensor | LowRank)
    return Rounded(weight)


def round_trip(weight: Tensor) -> Tensor:
    """The weight after packing and unpacking, with the gradient of the identity."""
    packed = unpack(quantize(weight), weight.dtype)
    return weight + (packed - weight.detach())


class _RoundedSum(torch.autograd.Function):
    """The product with base + scale * b @ a, rounded to MXFP4. Rounding has the gradient of the
    identity, so the gradients of a and b are those without rounding.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: LowRank) -> Tensor:
        packed, _, _ = quantize_matrix(weight)
        # Saved through torch, which frees these tensors in recomputed layers.
        ctx.save_for_backward(x, a, b, packed.blocks, packed.scales)
        ctx.scale = weight.scale
        return F.linear(x, unpack(packed, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, blocks, scales = ctx.saved_tensors
        rows, read = gradient.flatten(0, -2), x.flatten(0, -2)
        da = ctx.scale * (rows @ b.to(rows.dtype)).T @ read.to(rows.dtype)
        db = ctx.scale * rows.T @ (read @ a.to(read.dtype).T).to(rows.dtype)
        return gradient @ unpack(MXFP4(blocks, scales), gradient.dtype), da, db, None
