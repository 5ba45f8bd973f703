"""Matrices that training leaves as they are, in whatever format they lie, and what it learns beside
them: low-rank updates (LoRA; Hu et al. 2021, https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.ops.mxfp4 import MXFP4, quantize, unpack

# Elements of a packed matrix that are unpacked at a time: few enough to be used from the cache.
_UNPACKED = 1 << 20


@dataclass(frozen=True)
class LowRank:
    """base + scale * b @ a, or a stack of such matrices. Only a and b are trained.

    base (..., rows, cols), of any dtype or packed; a (..., rank, cols); b (..., rows, rank).
    dropout: of what a reads, while gradients are asked for. rounded: the whole is seen as MXFP4
    would hold it, and its gradient is that of what is not rounded (straight-through). With both,
    what dropout does to the update is added to the product with the rounded whole.
    """

    base: Tensor | MXFP4
    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0
    rounded: bool = False

    @property
    def shape(self) -> torch.Size:
        """Of base."""
        return self.base.shape

    def unbind(self) -> list[LowRank]:
        """The matrices of a stack."""
        parts = zip(self.a.unbind(), self.b.unbind(), strict=True)
        return [replace(self, base=self.base[i], a=a, b=b) for i, (a, b) in enumerate(parts)]

    def one(self, index: int) -> LowRank:
        """One matrix of a stack."""
        return replace(self, base=self.base[index], a=self.a[index], b=self.b[index])

    def merged(self) -> Tensor:
        """The one matrix in float32, as an update of the base."""
        base = _unpacked(self.base, torch.float32)
        return torch.addmm(base, self.b.float(), self.a.float(), alpha=self.scale)


def linear(x: Tensor, weight: LowRank) -> Tensor:
    """x (..., cols) -> (..., rows), with gradients for x, a and b."""
    # Evaluation asks for no gradients.
    drops = weight.dropout > 0 and torch.is_grad_enabled()
    read = F.dropout(x, weight.dropout) if drops else x
    if not weight.rounded:
        return torch.add(frozen_linear(x, weight.base), _update(read, weight), alpha=weight.scale)
    out = _Rounded.apply(x, weight.a, weight.b, weight)
    return torch.add(out, _update(read - x, weight), alpha=weight.scale) if drops else out


def _update(x: Tensor, weight: LowRank) -> Tensor:
    """x through a and b."""
    return F.linear(F.linear(x, weight.a), weight.b)


def frozen_linear(x: Tensor, weight: Tensor | MXFP4) -> Tensor:
    """x (..., cols) times weight (rows, cols) transposed, with a gradient for x alone. A weight
    that is packed, or of another dtype, is unpacked when it is used and again for the gradient.
    """
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return F.linear(x, weight)
    return _Frozen.apply(x, weight)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | MXFP4) -> Tensor:
        ctx.weight = weight
        return torch.cat([F.linear(x, piece) for _, piece in _pieces(weight, x.dtype)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pieces = _pieces(ctx.weight, gradient.dtype)
        parts = [gradient[..., rows] @ piece for rows, piece in pieces]
        return sum(parts[1:], parts[0]), None


class _Rounded(torch.autograd.Function):
    """The product with the sum as MXFP4 holds it. Rounding has the gradient of the identity, so a
    and b get theirs as if nothing had been rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: LowRank) -> Tensor:
        packed = quantize(weight.merged())
        # All through torch, which frees what a recomputed layer makes again.
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


def _unpacked(weight: Tensor | MXFP4, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if isinstance(weight, Tensor) else unpack(weight, dtype)


def _pieces(weight: Tensor | MXFP4, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a matrix at a time, and which."""
    count, cols = weight.shape
    step = max(1, _UNPACKED // cols)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield rows, _unpacked(weight[rows], dtype)
