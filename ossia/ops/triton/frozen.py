"""A mixture of experts whose matrices are frozen, packed in MXFP4 or dense, with a gradient for x,
the routing's weights and low-rank updates of the matrices. No step waits for the device.

Products of updates are those of dense experts: of a matrix (experts, rank, cols) and one of
(experts, rows, rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.triton import frozen_kernels as kernels
from ossia.ops.triton import training_experts as dense
from ossia.ops.triton.fp4 import precision, wide
from ossia.ops.triton.gates import gate_arguments
from ossia.ops.triton.launch import ceil_div, for_card, launch, power_of_2
from ossia.ops.triton.training_experts import Sorted
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import Weight

Factors = tuple[Tensor | None, Tensor | None]  # of an update; None and None without one


class _Blocks(NamedTuple):
    """A tile of a product: rows, and rows of the matrix; and of one with transposed matrices: rows,
    columns, and the rows of the matrix in a step.
    """

    rows: int
    cols: int
    num_warps: int
    num_stages: int
    turned: tuple[int, int, int]


# By architecture: of experts with few rows each, and with many.
_BLOCKS = {
    80: (_Blocks(64, 128, 4, 3, (64, 128, 32)), _Blocks(128, 128, 8, 3, (128, 128, 32))),
    90: (_Blocks(64, 128, 4, 4, (64, 128, 64)), _Blocks(128, 128, 8, 4, (128, 128, 64))),
}
_FLOAT32 = _Blocks(64, 64, 4, 2, (64, 64, 16))  # without tensor cores
_FEW = 96  # rows of an expert


@dataclass(frozen=True)
class Layer:
    """The experts of a layer, with frozen matrices."""

    first: _Part
    last: _Part
    activation: SwiGLU | ClampedSwiGLU

    @staticmethod
    def of(experts: ExpertWeights) -> Layer | None:
        """None if these experts are of another kind, or an update has dropout now."""
        first = _Part.of(experts.gate_up, experts.gate_up_bias)
        last = _Part.of(experts.down, experts.down_bias)
        if first is None or last is None:
            return None
        return Layer(first, last, experts.activation)


@dataclass(frozen=True)
class _Part:
    """A stack of frozen matrices (experts, rows, cols), their biases, and the leaves and the scale
    of an update.
    """

    base: Tensor | MXFP4
    bias: Tensor | None
    leaves: Factors
    scale: float

    @staticmethod
    def of(weight: Weight, bias: Tensor | None) -> _Part | None:
        base, leaves, scale = weight, (None, None), 1.0
        if isinstance(weight, LowRank):
            if weight.dropout > 0 and torch.is_grad_enabled():
                return None  # its masks would have to be kept
            base, leaves, scale = weight.base, (weight.a, weight.b), weight.scale
        if not isinstance(base, Tensor | MXFP4) or len(base.shape) != 3:
            return None
        frozen = (base if isinstance(base, Tensor) else None, bias)
        if any(tensor is not None and tensor.requires_grad for tensor in frozen):
            return None
        return _Part(base, bias, leaves, scale)

    def factors(self, leaves: Factors, dtype: torch.dtype) -> Factors:
        """a, and b times the scale, as products take them."""
        a, b = leaves
        if a is None or b is None:
            return None, None
        return a.to(dtype).contiguous(), (b * self.scale).to(dtype).contiguous()

    def product(
        self, x: Tensor, by_expert: Sorted, factors: Factors, *, gather: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Each row by its expert's matrix and bias -> (choices, rows), and what b reads: (choices,
        rank).
        """
        out = products(x, self.base, self.bias, by_expert, gather=gather)
        a, b = factors
        if a is None or b is None:
            return out, None
        low = dense.products(x, a, None, by_expert, gather=gather)
        return dense.products(low, b, None, by_expert, added_to=out), low

    def turned(
        self, slope: Tensor, by_expert: Sorted, factors: Factors, *, gather: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of `product`'s x by that of its result -> (choices, cols), and that of what
        b reads.
        """
        out = products_turned(slope, self.base, by_expert, gather=gather)
        a, b = factors
        if a is None or b is None:
            return out, None
        low = dense.products(slope, b, None, by_expert, gather=gather, turned=True)
        return dense.products(low, a, None, by_expert, turned=True, added_to=out), low


def mixture(
    x: Tensor, routing: Routing, layer: Layer, dtype: torch.dtype, residual: Tensor | None
) -> Tensor:
    """As Backend.moe, with products in `dtype`; x (tokens, hidden), not empty, and the result has
    x's dtype, or the residual's if that is wider.
    """
    by_expert = dense.sort(routing.experts, layer.last.base.shape[0])
    leaves = (*layer.first.leaves, *layer.last.leaves)
    return _Mixture.apply(
        x, routing.weights, residual, routing.experts, layer, by_expert, dtype, *leaves
    )


class _Mixture(torch.autograd.Function):
    """Kept for the gradient: x, the outputs of the first matrices and what updates read. A weight's
    gradient is the product of its expert's output, which is not kept, with the token's slope: that
    of the last matrix's input with the slope times the matrix, which the gradient of x needs too,
    plus that of the bias with the slope.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        experts: Tensor,
        layer: Layer,
        by_expert: Sorted,
        dtype: torch.dtype,
        *leaves: Tensor | None,
    ) -> Tensor:
        rows, weights = x.to(dtype).contiguous(), weights.contiguous()
        first, last = _both(layer, leaves, dtype)
        both, low = layer.first.product(rows, by_expert, first, gather=True)
        hidden = dense.activated(both, layer.activation)
        found, low_last = layer.last.product(hidden, by_expert, last)
        wide = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
        ctx.layer, ctx.by_expert, ctx.dtype = layer, by_expert, x.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        ctx.save_for_backward(rows, weights, experts, both, low, low_last, *leaves)
        return dense.combined(found, by_expert, weights, residual, wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, experts, both, low, low_last, *leaves = ctx.saved_tensors
        layer, by_expert = ctx.layer, ctx.by_expert
        first, last = _both(layer, leaves, rows.dtype)
        slope = gradient.to(rows.dtype).contiguous()
        # Of outputs as if their weights were 1, which rows of rank's width and of units get later.
        d_hidden, back = layer.last.turned(slope, by_expert, last, gather=True)
        hidden, d_both, d_weights = _deactivated(
            d_hidden, both, by_expert, weights, layer.activation
        )
        if layer.last.bias is not None:
            of_bias = slope.float() @ layer.last.bias.float().T
            d_weights += of_bias.gather(1, experts)
        d_last: Factors = (None, None)
        if back is not None and low_last is not None:
            share = weights.flatten()[by_expert.order, None].to(rows.dtype)
            d_a = _outer(back * share, hidden, by_expert)
            d_b = _outer(low_last * share, slope, by_expert, gather=True)
            d_last = d_a, d_b.mT * layer.last.scale
        d_rows, back = layer.first.turned(d_both, by_expert, first)
        d_first: Factors = (None, None)
        if back is not None and low is not None:
            d_a = _outer(back, rows, by_expert, gather=True)
            d_first = d_a, _outer(low, d_both, by_expert).mT * layer.first.scale
        d_x = d_residual = None
        if ctx.needs_input_grad[0]:
            d_x = dense.combined(d_rows, by_expert, None, None, ctx.dtype)
        if ctx.needs_input_grad[2]:
            d_residual = gradient.to(ctx.residual_dtype)
        d_weights = d_weights.to(weights.dtype)
        return d_x, d_weights, d_residual, None, None, None, None, *d_first, *d_last


def _both(
    layer: Layer, leaves: Sequence[Tensor | None], dtype: torch.dtype
) -> tuple[Factors, Factors]:
    a, b, a_last, b_last = leaves
    return layer.first.factors((a, b), dtype), layer.last.factors((a_last, b_last), dtype)


def _outer(low: Tensor, x: Tensor, by_expert: Sorted, *, gather: bool = False) -> Tensor:
    """Of each expert the sum over its rows of low (choices, rank) times x -> (experts, rank, width
    of x), in float32.
    """
    return dense.weights_gradient(low, x, by_expert, (torch.float32, None), gather=gather)[0]


def _blocks(x: Tensor, by_expert: Sorted) -> _Blocks:
    if x.dtype is torch.float32:
        return _FLOAT32
    few, many = for_card(_BLOCKS, x.device)
    return few if len(by_expert.order) < _FEW * (len(by_expert.offsets) - 1) else many


def _readable(stack: Tensor, x: Tensor) -> Tensor:
    """A dense stack as the products with x read it. They widen a narrower one tile by tile; tiles
    of a wider one might not fit into shared memory.
    """
    return (stack if stack.itemsize <= x.itemsize else stack.to(x.dtype)).contiguous()


def products(
    x: Tensor,
    stack: Tensor | MXFP4,
    bias: Tensor | None,
    by_expert: Sorted,
    *,
    gather: bool = False,
) -> Tensor:
    """As `training_experts.products`."""
    if isinstance(stack, Tensor):
        return dense.products(x, _readable(stack, x), bias, by_expert, gather=gather)
    experts, width, cols = stack.shape
    count, blocks = len(by_expert.order), _blocks(x, by_expert)
    out = x.new_empty(count, width)
    striped = x.unflatten(-1, (-1, 16, 2)).mT.contiguous()
    tiles = ceil_div(count, blocks.rows) + min(experts, count)
    launch(
        kernels.products, (tiles, ceil_div(width, blocks.cols)),
        striped, stack.blocks.contiguous(), stack.scales.contiguous(), bias, by_expert.order,
        by_expert.offsets, out, width, cols // 2,
        EXPERTS=experts, LANES=power_of_2(experts), CHOSEN=by_expert.chosen, ROWS=blocks.rows,
        COLS=blocks.cols, GATHER=gather, BIAS=bias is not None, WIDE=wide(x),
        PRECISION=precision(x, packed=True), num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )  # fmt: skip
    return out


def products_turned(
    slope: Tensor, stack: Tensor | MXFP4, by_expert: Sorted, *, gather: bool = False
) -> Tensor:
    """As `training_experts.products`, turned."""
    if isinstance(stack, Tensor):
        stack = _readable(stack, slope)
        return dense.products(slope, stack, None, by_expert, gather=gather, turned=True)
    experts, depth, cols = stack.shape
    count, blocks = len(by_expert.order), _blocks(slope, by_expert)
    rows, width, step = blocks.turned
    out = slope.new_empty(count, cols)
    tiles = ceil_div(count, rows) + min(experts, count)
    launch(
        kernels.products_turned, (tiles, ceil_div(cols, width)),
        slope, stack.blocks.contiguous(), stack.scales.contiguous(), by_expert.order,
        by_expert.offsets, out, depth, cols // 2,
        EXPERTS=experts, LANES=power_of_2(experts), CHOSEN=by_expert.chosen, ROWS=rows,
        BYTES=width // 2, DEPTH=step, GATHER=gather, WIDE=wide(slope),
        PRECISION=precision(slope, packed=True), num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )  # fmt: skip
    return out


def _deactivated(
    slopes: Tensor,
    both: Tensor,
    by_expert: Sorted,
    weights: Tensor,
    activation: SwiGLU | ClampedSwiGLU,
) -> tuple[Tensor, Tensor, Tensor]:
    """The activation's result again, the gradient of its input, and a part of the weights', in
    float32: see the kernel.
    """
    count, inter = slopes.shape
    limit, alpha, clamped = gate_arguments(activation)
    hidden, d_both = torch.empty_like(slopes), torch.empty_like(both)
    d_weights = torch.empty_like(weights, dtype=torch.float32)
    launch(
        kernels.activate_backward, (count,),
        slopes, both, by_expert.order, weights, hidden, d_both, d_weights, inter, limit, alpha,
        CLAMPED=clamped, BLOCK=dense.block_of(inter), num_warps=4,
    )  # fmt: skip
    return hidden, d_both, d_weights
