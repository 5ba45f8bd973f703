"""The backend that trains low-rank updates of frozen matrices: products with the matrices and with
their transposes are native, whatever format they have, and experts keep little for the gradient.

Where the native module or a kernel is missing, the operations of `Training` run instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.ops.autocast import autocast_dtype
from ossia.ops.low_rank import LowRank
from ossia.ops.mixture import (
    Factors,
    Groups,
    Kept,
    Mixture,
    mixture,
    products,
    takes,
)
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.packing import native
from ossia.ops.training import Training
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import Weight


class Adapted(Training):
    """`Training`, with native products of frozen matrices."""

    name = "adapted"

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.linear."""
        matrix = _adapted(weight)
        product = None if matrix is None else _Matrix.of(matrix, None, autocast_dtype(x))
        if matrix is None or product is None or not x.is_cpu or not x.numel():
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        rows = x.flatten(0, -2)
        out = _Linear.apply(rows, matrix.a, matrix.b, product).view(*x.shape[:-1], -1)
        out = out if bias is None else out + bias.to(out.dtype)
        out = out if residual is None else residual + self.reduce(out)
        return out if dtype is None else out.to(dtype)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe. For the gradient it keeps x, the outputs of the first matrices, and what
        updates read: nothing that can be computed from these in a pass over memory.
        """
        first, last = _products(x, experts) if takes(x, experts) else (None, None)
        if first is None or last is None:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        job = Mixture.of(routing, experts, first, last)
        factors = _factors(experts.gate_up), _factors(experts.down)
        out = mixture(x, routing.weights, job, *factors)
        out = out.to(x.dtype if dtype is None else dtype)
        return out if residual is None else residual + self.reduce(out)


def _adapted(weight: Weight) -> LowRank | None:
    """The weight, if this file computes its product: without dropout, which has masks to keep."""
    if not isinstance(weight, LowRank):
        return None
    drops = weight.dropout > 0 and torch.is_grad_enabled()
    return None if drops or weight.a.dtype is not torch.float32 else weight


def _products(x: Tensor, experts: ExpertWeights) -> list[_Matrix | None]:
    """The products with the first and with the last matrices; None for those that are not native.

    Dropout has masks to keep.
    """
    pairs = (experts.gate_up, experts.gate_up_bias), (experts.down, experts.down_bias)
    return [
        None
        if isinstance(weight, LowRank) and _adapted(weight) is None
        else _Matrix.of(weight, bias, autocast_dtype(x))
        for weight, bias in pairs
    ]


def _factors(weight: Weight) -> Factors:
    """What is learned: a (..., rank, cols) and b (..., rows, rank)."""
    return (weight.a, weight.b) if isinstance(weight, LowRank) else (None, None)


@dataclass(frozen=True)
class _Matrix:
    """A frozen matrix or stack of them, `stack`, with scale * b @ a added to each; see `_factors`.

    It keeps what the updates read, (tokens, rank), a and b.
    """

    stack: Any  # cpu.frozen.Stack
    dtype: torch.dtype  # of products
    scale: float

    @staticmethod
    def of(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> _Matrix | None:
        """None if the weight, the bias or the dtype is not what the native products take."""
        base = weight.base if isinstance(weight, LowRank) else weight
        if native() is None or not isinstance(base, Tensor | MXFP4):
            return None
        if isinstance(base, Tensor) and (
            base.requires_grad or base.dtype is torch.float32 is not dtype
        ):
            return None
        if dtype not in (torch.float32, torch.bfloat16) or (
            bias is not None and bias.requires_grad
        ):
            return None
        stack = products().stack_of(base, None if bias is None else bias.to(dtype).contiguous())
        if stack is None:
            return None
        return _Matrix(stack, dtype, weight.scale if isinstance(weight, LowRank) else 0.0)

    def product(self, x: Tensor, groups: Groups, factors: Factors) -> tuple[Tensor, Kept]:
        """See mixture.Product."""
        out = products().grouped(x, groups.counts, self.stack)
        a, b = factors
        if a is None or b is None:
            return out, (None, None, None)
        low = x.new_empty(len(x), a.shape[-2])
        for rows, expert in groups:
            torch.mm(x[rows], _of(a, expert).mT.to(x.dtype), out=low[rows])
            out[rows].addmm_(low[rows], _of(b, expert).mT.to(x.dtype), alpha=self.scale)
        return out, (low, a, b)

    def gradient(self, slope: Tensor, groups: Groups, kept: Kept) -> Tensor:
        """See mixture.Product."""
        out = products().grouped(slope, groups.counts, self.stack, turned=True)
        _, a, b = kept
        if a is not None and b is not None:
            for rows, expert in groups:
                low = slope[rows] @ _of(b, expert).to(slope.dtype)
                out[rows].addmm_(low, _of(a, expert).to(slope.dtype), alpha=self.scale)
        return out

    def learned(self, x: Tensor, slope: Tensor, groups: Groups, kept: Kept) -> Factors:
        """The gradients of a and b."""
        low, a, b = kept
        if low is None or a is None or b is None:
            return None, None
        d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
        for rows, expert in groups:
            back = slope[rows] @ _of(b, expert).to(slope.dtype)
            _of(d_a, expert).copy_(back.mT @ x[rows]).mul_(self.scale)
            _of(d_b, expert).copy_(slope[rows].mT @ low[rows]).mul_(self.scale)
        return d_a, d_b


def _of(factor: Tensor, expert: int) -> Tensor:
    return factor if factor.ndim == 2 else factor[expert]


class _Linear(torch.autograd.Function):
    """x (tokens, cols) times an adapted matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, matrix: _Matrix) -> Tensor:
        groups = Groups(torch.tensor([len(x)]))
        with torch.autocast("cpu", enabled=False):
            narrow = x.to(matrix.dtype)
            out, kept = matrix.product(narrow, groups, (a, b))
        ctx.matrix, ctx.groups = matrix, groups
        ctx.save_for_backward(narrow, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        matrix, groups = ctx.matrix, ctx.groups
        slope = slope.to(matrix.dtype).contiguous()
        d_x = matrix.gradient(slope, groups, kept) if ctx.needs_input_grad[0] else None
        return d_x, *matrix.learned(x, slope, groups, kept), None
