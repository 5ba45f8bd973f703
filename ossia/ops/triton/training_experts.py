"""A mixture of experts with a gradient, of which no step waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.mxfp4 import BLOCK as MXFP4_BLOCK
from ossia.ops.triton import training_experts_kernels as kernels
from ossia.ops.triton.gates import gate_arguments
from ossia.ops.triton.launch import ceil_div, for_card, launch, power_of_2
from ossia.ops.values import Routing


class _Blocks(NamedTuple):
    """A tile: for rows, their number, that of columns, and the depth of a step; for the gradient of
    weights, the rows of a step, and the tile's columns and depth.
    """

    rows: int
    cols: int
    depth: int
    num_warps: int
    num_stages: int


# By architecture: of rows, and of the gradient of weights.
_BLOCKS = {
    80: (_Blocks(128, 128, 32, 8, 3), _Blocks(32, 128, 128, 8, 3)),
    90: (_Blocks(128, 128, 64, 8, 3), _Blocks(64, 128, 128, 8, 3)),
}
_FLOAT32 = (_Blocks(64, 64, 16, 4, 2), _Blocks(16, 64, 64, 4, 2))  # without tensor cores
# Of a width or depth that is no multiple of 16, whose loads take more registers.
_ODD = (_Blocks(64, 64, 32, 4, 2), _Blocks(32, 64, 64, 4, 2))


class Stack(NamedTuple):
    """The dense matrices and biases of a layer's experts, as in ExpertWeights."""

    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def mixture(
    x: Tensor,
    routing: Routing,
    stack: Stack,
    activation: SwiGLU | ClampedSwiGLU,
    dtype: torch.dtype,
    residual: Tensor | None,
) -> Tensor:
    """As Backend.moe, with products in `dtype`; x (tokens, hidden), not empty, and the result has
    x's dtype, or the residual's if that is wider.
    """
    return _Mixture.apply(
        x, routing.weights, residual, *stack, sort(routing.experts, len(stack.down)),
        activation, dtype,
    )  # fmt: skip


class Sorted(NamedTuple):
    """Choices sorted by expert: see `training_experts_kernels`. places (choices,): the row of each
    choice.
    """

    order: Tensor
    places: Tensor
    offsets: Tensor
    chosen: int


def sort(choices: Tensor, experts: int) -> Sorted:
    flat = choices.flatten()
    # Sorting takes a pass over each byte of the keys.
    keys, order = flat.to(torch.uint8 if experts <= 256 else torch.int32).sort(stable=True)
    order = order.to(torch.int32)
    count = torch.arange(len(flat), dtype=torch.int32, device=flat.device)
    places = torch.empty_like(order).scatter_(0, order.long(), count)
    edges = torch.arange(experts + 1, dtype=torch.int32, device=flat.device)
    offsets = torch.searchsorted(keys.int(), edges, out_int32=True)
    return Sorted(order, places, offsets, choices.shape[1])


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        gate_up: Tensor,
        gate_up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None,
        by_expert: Sorted,
        activation: SwiGLU | ClampedSwiGLU,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = x.to(dtype).contiguous()
        weights = weights.contiguous()
        first, second = gate_up.to(dtype).contiguous(), down.to(dtype).contiguous()
        both = products(rows, first, gate_up_bias, by_expert, gather=True)
        hidden = activated(both, activation)
        found = products(hidden, second, down_bias, by_expert)
        wide = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
        out = combined(found, by_expert, weights, residual, wide)
        ctx.by_expert, ctx.activation = by_expert, activation
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        ctx.stack_dtypes = [None if w is None else w.dtype for w in (
            gate_up, gate_up_bias, down, down_bias
        )]  # fmt: skip
        ctx.save_for_backward(rows, weights, first, second, both, found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, first, second, both, found = ctx.saved_tensors
        by_expert, dtypes = ctx.by_expert, ctx.stack_dtypes
        gradient = gradient.contiguous()
        d_found, d_weights = _uncombined(gradient, found, by_expert, weights)
        d_hidden = products(d_found, second, None, by_expert, turned=True)
        hidden, d_both = _deactivated(d_hidden, both, ctx.activation)
        d_first = d_second = (None, None)
        if any(ctx.needs_input_grad[5:7]):
            d_second = weights_gradient(d_found, hidden, by_expert, dtypes[2:])
        if any(ctx.needs_input_grad[3:5]):
            d_first = weights_gradient(d_both, rows, by_expert, dtypes[:2], gather=True)
        d_x = d_residual = None
        if ctx.needs_input_grad[0]:
            d_rows = products(d_both, first, None, by_expert, turned=True)
            d_x = combined(d_rows, by_expert, None, None, ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            d_residual = gradient.to(ctx.dtypes[1])
        return d_x, d_weights, d_residual, *d_first, *d_second, None, None, None


def _tables(x: Tensor, width: int) -> tuple[_Blocks, _Blocks]:
    if x.dtype is torch.float32:
        return _FLOAT32
    return _ODD if x.shape[1] % 16 or width % 16 else for_card(_BLOCKS, x.device)


def precision(x: Tensor) -> str:
    return "ieee" if x.dtype is torch.float32 else "tf32"


def products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    by_expert: Sorted,
    *,
    gather: bool = False,
    turned: bool = False,
    added_to: Tensor | None = None,
) -> Tensor:
    """Each row by its expert's matrix (rows, cols) transposed, plus its bias -> (choices, rows); or
    `turned`, by the matrix itself -> (choices, cols). gather: x has a row for each token, and else
    for each choice, in the order of `by_expert`. added_to: the result of earlier products, to which
    these are added in place.
    """
    experts, rows, cols = weight.shape
    width, depth = (cols, rows) if turned else (rows, cols)
    count, blocks = len(by_expert.order), _tables(x, width)[0]
    out = x.new_empty(count, width) if added_to is None else added_to
    # Each expert's last tile may be half empty.
    tiles = ceil_div(count, blocks.rows) + min(experts, count)
    launch(
        kernels.products, (tiles, ceil_div(width, blocks.cols)),
        x, weight, bias, by_expert.order, by_expert.offsets, out, depth, width,
        *((1, cols) if turned else (cols, 1)), rows * cols,
        EXPERTS=experts, LANES=power_of_2(experts), CHOSEN=by_expert.chosen, ROWS=blocks.rows,
        COLS=blocks.cols, DEPTH=blocks.depth, GATHER=gather, BIAS=bias is not None,
        ADD=added_to is not None, PRECISION=precision(x), num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )  # fmt: skip
    return out


def weights_gradient(
    gradient: Tensor,
    x: Tensor,
    by_expert: Sorted,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    *,
    gather: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a stack and of its biases, in their dtypes."""
    experts, width, depth = len(by_expert.offsets) - 1, gradient.shape[1], x.shape[1]
    blocks = _tables(x, width)[1]
    found = x.new_empty(experts, width, depth, dtype=dtypes[0])
    bias = None if dtypes[1] is None else x.new_empty(experts, width, dtype=dtypes[1])
    launch(
        kernels.weights_backward,
        (ceil_div(depth, blocks.depth), ceil_div(width, blocks.cols), experts),
        gradient, x, by_expert.order, by_expert.offsets, found, bias, width, depth,
        CHOSEN=by_expert.chosen, ROWS=blocks.rows, COLS=blocks.cols, DEPTH=blocks.depth,
        GATHER=gather, BIAS=bias is not None, PRECISION=precision(x),
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return found, bias


def activated(both: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
    count, width = both.shape
    limit, alpha, clamped = gate_arguments(activation)
    out = both.new_empty(count, width // 2)
    block = block_of(width // 2)
    launch(
        kernels.activate, (count, ceil_div(width // 2, block)), both, out, width // 2, limit, alpha,
        CLAMPED=clamped, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _deactivated(
    gradient: Tensor, both: Tensor, activation: SwiGLU | ClampedSwiGLU
) -> tuple[Tensor, Tensor]:
    """What `activated` gave, and the gradient of its input."""
    count, inter = gradient.shape
    limit, alpha, clamped = gate_arguments(activation)
    hidden, d_both = torch.empty_like(gradient), torch.empty_like(both)
    block = block_of(inter)
    launch(
        kernels.activate_backward, (count, ceil_div(inter, block)),
        gradient, both, hidden, d_both, inter, limit, alpha,
        CLAMPED=clamped, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return hidden, d_both


def combined(
    rows: Tensor,
    by_expert: Sorted,
    weights: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Of each token the sum of its rows, weighted if there are weights, plus the residual."""
    width, tokens = rows.shape[1], len(rows) // by_expert.chosen
    out = rows.new_empty(tokens, width, dtype=dtype)
    block = block_of(width)
    residual = None if residual is None else residual.contiguous()
    launch(
        kernels.combine, (tokens, ceil_div(width, block)),
        rows, by_expert.places, weights, residual, out, width,
        CHOSEN=by_expert.chosen, WEIGHTED=weights is not None, RESIDUAL=residual is not None,
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out


def _uncombined(
    gradient: Tensor, rows: Tensor, by_expert: Sorted, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of rows and weights."""
    count, width = rows.shape
    d_rows, d_weights = torch.empty_like(rows), torch.empty_like(weights)
    launch(
        kernels.combine_backward, (count,),
        gradient, rows, by_expert.order, weights, d_rows, d_weights, width,
        CHOSEN=by_expert.chosen, BLOCK=block_of(width), num_warps=4,
    )  # fmt: skip
    return d_rows, d_weights


def block_of(width: int) -> int:
    return min(1024, power_of_2(width))


def rounded(weight: Tensor) -> Tensor:
    """As `rounded.round_trip`: the weight after packing to MXFP4 and unpacking, with the gradient
    of the identity. A number that MXFP4 cannot hold becomes NaN, which the loss shows.
    """
    return _Rounded.apply(weight)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:  # noqa: ARG004
        weight = weight.contiguous()
        blocks, out = weight.numel() // MXFP4_BLOCK, torch.empty_like(weight)
        each = 64
        launch(
            kernels.round_blocks, (ceil_div(blocks, each),), weight, out, blocks, BLOCKS=each,
            num_warps=4,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient
