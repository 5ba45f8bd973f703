"""The backend that trains low-rank updates of frozen matrices: products with the matrices and with
their transposes are native, whatever format they have, and experts keep little for the gradient.

Where the native module or a kernel is missing, the operations of `Training` run instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import BLOCK, MXFP4
from ossia.ops.packing import native as _native
from ossia.ops.training import Training
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import Weight

Factors = Sequence[Tensor | None]  # a and b, or None and None


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
        product = None if matrix is None else _Matrix.of(matrix, None, _dtype(x))
        if matrix is None or product is None or not x.is_cpu or not x.numel():
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        rows = x.flatten(0, -2)
        out = _Linear.apply(rows, matrix.a, matrix.b, product).view(*x.shape[:-1], -1)
        out = out if bias is None else out + bias
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
        job = _Job.of(x, routing, experts)
        if job is None:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        learned = [factor for part in (job.first, job.last) for factor in part.factors]
        out = _Experts.apply(x, routing.weights, job, *learned)
        out = out.to(x.dtype if dtype is None else dtype)
        return out if residual is None else residual + self.reduce(out)


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with x."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _adapted(weight: Weight) -> LowRank | None:
    """The weight, if this file computes its product: without dropout, which has masks to keep."""
    if not isinstance(weight, LowRank):
        return None
    drops = weight.dropout > 0 and torch.is_grad_enabled()
    return None if drops or weight.a.dtype is not torch.float32 else weight


@dataclass(frozen=True)
class _Matrix:
    """A frozen matrix or stack of them, `stack`, with scale * b @ a added to each."""

    stack: Any  # cpu.frozen.Stack
    dtype: torch.dtype  # of products
    scale: float
    factors: Factors  # a (..., rank, cols) and b (..., rows, rank)

    @staticmethod
    def of(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> _Matrix | None:
        """None if the weight, the bias or the dtype is not what the native products take."""
        native = _native()
        base = weight.base if isinstance(weight, LowRank) else weight
        if native is None or not isinstance(base, Tensor | MXFP4):
            return None
        if isinstance(base, Tensor) and (
            base.requires_grad or base.dtype is torch.float32 is not dtype
        ):
            return None
        if dtype not in (torch.float32, torch.bfloat16) or (
            bias is not None and bias.requires_grad
        ):
            return None
        stack = native.stack_of(base, None if bias is None else bias.to(dtype).contiguous())
        if stack is None:
            return None
        if not isinstance(weight, LowRank):
            return _Matrix(stack, dtype, 0.0, (None, None))
        return _Matrix(stack, dtype, weight.scale, (weight.a, weight.b))

    def product(self, x: Tensor, groups: _Groups, factors: Factors) -> tuple[Tensor, Tensor | None]:
        """x (tokens, cols) -> (tokens, rows), and what the update read: (tokens, rank)."""
        out = _products().grouped(x, groups.counts, self.stack)
        a, b = factors
        if a is None or b is None:
            return out, None
        low = x.new_empty(len(x), a.shape[-2])
        for rows, expert in groups:
            torch.mm(x[rows], _of(a, expert).mT.to(x.dtype), out=low[rows])
            out[rows].addmm_(low[rows], _of(b, expert).mT.to(x.dtype), alpha=self.scale)
        return out, low

    def gradient(self, slope: Tensor, groups: _Groups, factors: Factors) -> Tensor:
        """The gradient (tokens, cols) of `product`'s x by that of its result (tokens, rows)."""
        out = _products().grouped(slope, groups.counts, self.stack, turned=True)
        a, b = factors
        if a is not None and b is not None:
            for rows, expert in groups:
                low = slope[rows] @ _of(b, expert).to(slope.dtype)
                out[rows].addmm_(low, _of(a, expert).to(slope.dtype), alpha=self.scale)
        return out

    def learned(
        self, x: Tensor, low: Tensor | None, slope: Tensor, groups: _Groups, factors: Factors
    ) -> Factors:
        """The gradients of a and b."""
        a, b = factors
        if a is None or b is None or low is None:
            return None, None
        d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
        for rows, expert in groups:
            back = slope[rows] @ _of(b, expert).to(slope.dtype)
            _of(d_a, expert).copy_(back.mT @ x[rows]).mul_(self.scale)
            _of(d_b, expert).copy_(slope[rows].mT @ low[rows]).mul_(self.scale)
        return d_a, d_b


def _products() -> ModuleType:
    native = _native()
    assert native is not None
    return native


def _of(factor: Tensor, expert: int) -> Tensor:
    return factor if factor.ndim == 2 else factor[expert]


@dataclass(frozen=True)
class _Groups:
    """Rows that are sorted by expert: int64 counts (experts,)."""

    counts: Tensor

    def __iter__(self) -> Iterator[tuple[slice, int]]:
        """The rows of each expert that has some."""
        first = 0
        for expert, count in enumerate(self.counts.tolist()):
            if count:
                yield slice(first, first + count), expert
            first += count


class _Linear(torch.autograd.Function):
    """x (tokens, cols) times an adapted matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, matrix: _Matrix) -> Tensor:
        groups = _Groups(torch.tensor([len(x)]))
        with torch.autocast("cpu", enabled=False):
            narrow = x.to(matrix.dtype)
            out, low = matrix.product(narrow, groups, (a, b))
        ctx.matrix, ctx.groups = matrix, groups
        ctx.save_for_backward(narrow, low, a, b)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, low, *factors = ctx.saved_tensors
        matrix, groups = ctx.matrix, ctx.groups
        slope = slope.to(matrix.dtype).contiguous()
        d_x = matrix.gradient(slope, groups, factors) if ctx.needs_input_grad[0] else None
        return d_x, *matrix.learned(x, low, slope, groups, factors), None


@dataclass(frozen=True)
class _Job:
    """The experts of a layer and the order of their tokens' choices."""

    first: _Matrix
    last: _Matrix
    activation: SwiGLU | ClampedSwiGLU
    last_bias: Tensor | None
    groups: _Groups
    order: Tensor  # int64 (choices,): the choice at each place
    chosen: int

    @staticmethod
    def of(x: Tensor, routing: Routing, experts: ExpertWeights) -> _Job | None:
        """None if the native products do not take them."""
        dtype = _dtype(x)
        if not x.is_cpu or not x.numel() or experts.down.shape[-1] % BLOCK:
            return None
        parts = []
        for weight, bias in (
            (experts.gate_up, experts.gate_up_bias),
            (experts.down, experts.down_bias),
        ):
            if isinstance(weight, LowRank) and _adapted(weight) is None:
                return None
            parts.append(_Matrix.of(weight, bias, dtype))
        first, last = parts
        if first is None or last is None:
            return None
        choices = routing.experts.flatten()
        return _Job(
            first,
            last,
            experts.activation,
            experts.down_bias,
            _Groups(choices.bincount(minlength=experts.down.shape[0])),
            choices.argsort(stable=True),
            routing.experts.shape[1],
        )

    @property
    def tokens(self) -> Tensor:
        """The token of each place."""
        return self.order // self.chosen

    def sums(self, values: Tensor) -> Tensor:
        """The sum of the places (places, width) of each token -> (tokens, width)."""
        each = values[self.order.argsort()]
        return each.view(-1, self.chosen, values.shape[-1]).sum(1)


class _Experts(torch.autograd.Function):
    """x (tokens, hidden) through its experts, weighted and summed.

    The gradient of a weight is the product of its expert's output, which is not kept, with the
    slope of the token: that of the last matrix's input with the slope times the matrix, which the
    gradient of x needs too, plus that of the bias with the slope.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        job: _Job,
        *factors: Tensor | None,
    ) -> Tensor:
        native = _products()
        first, last = factors[:2], factors[2:]
        with torch.autocast("cpu", enabled=False):
            narrow = x.to(job.first.dtype)
            pairs, low = job.first.product(narrow[job.tokens], job.groups, first)
            units = native.activate(pairs, job.activation)
            out, low_last = job.last.product(units, job.groups, last)
            places = weights.flatten()[job.order, None]
            result = job.sums(out.float().mul_(places))
        ctx.job = job
        ctx.save_for_backward(narrow, weights, pairs, low, low_last, *factors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        job, native = ctx.job, _products()
        x, weights, pairs, low, low_last, *factors = ctx.saved_tensors
        first, last = factors[:2], factors[2:]
        slope = slope.to(job.last.dtype)[job.tokens]  # of an output as if its weight were 1
        units = native.activate(pairs, job.activation)
        d_units = job.last.gradient(slope, job.groups, last)
        d_weights = (d_units * units).sum(-1, dtype=torch.float32)
        if job.last_bias is not None:
            for rows, expert in job.groups:
                d_weights[rows] += slope[rows].float() @ job.last_bias[expert].float()
        places = weights.flatten()[job.order, None].to(slope.dtype)
        d_last = job.last.learned(units, low_last, slope.mul_(places), job.groups, last)
        d_pairs = native.activation_gradient(pairs, d_units.mul_(places), job.activation)
        d_first = job.first.learned(x[job.tokens], low, d_pairs, job.groups, first)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = job.sums(job.first.gradient(d_pairs, job.groups, first).float())
        of_choices = torch.empty_like(d_weights)
        of_choices[job.order] = d_weights
        return d_x, of_choices.view(weights.shape), None, *d_first, *d_last
