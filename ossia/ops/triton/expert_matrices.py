"""Grouped products: each block of rows, which are tokens of one expert, times that expert's matrix.

Packed matrices stay packed up to the registers of the matrix unit. They are its left operand and
the tokens its right one, so few tokens waste little of it.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ossia.ops.triton.fp4 import in_order, precision, tiles, wide
from ossia.ops.triton.gates import gate_arguments, gated
from ossia.ops.triton.launch import Card, card, ceil_div, launch
from ossia.ops.triton.paired import GROUP, PairedMXFP4
from ossia.ops.triton.routing import Sorted, sort
from ossia.ops.values import ExpertWeights, Routing

_LANES = 1024  # numbers that a program moves or adds at a time


@dataclass(frozen=True)
class Blocks:
    """The shapes of a grouped product. rows: tokens of a block; columns: of the matrix's rows;
    depth: of a step; together: blocks of rows that follow one another and share what is in L2.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    together: int


def blocks_of(card: Card, each: float, packed: bool, size: int) -> Blocks:
    """The block shapes for so many choices of each expert, on average; size: bytes of a number."""
    large = card.architecture >= 90  # more shared memory, and asynchronous products
    if size > 2:  # without a matrix unit
        return Blocks(16, 64, 32, 4, 2, 1 << 30) if each <= 16 else Blocks(64, 64, 32, 4, 2, 8)
    if each <= 8:
        warps = 8 if card.architecture >= 100 else 4  # four would spill there
        return Blocks(16, 128, 64, warps, 6 if large else 4, 1 << 30)
    if each <= 32:
        return Blocks(32, 128, 64, 4, 5 if large else 4, 1 << 30)
    if each < 128 or not large:
        return Blocks(64, 128, 64, 4, 4 if large else 3, 4)
    return Blocks(128, 256, 64, 8, 4 if packed else 3, 8)


@triton.jit
def _place(blocks, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr, SIZE: tl.constexpr):
    """A program's block of rows and block of columns: `TOGETHER` blocks of rows take all columns
    before the next ones do.
    """
    program = tl.program_id(0)
    across: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    together = tl.minimum(blocks, TOGETHER)
    first = program // (together * across) * together
    rows = tl.minimum(blocks - first, together)
    inside = program % (together * across)
    return first + inside % rows, inside // rows


@triton.jit
def _finish(
    total, bias, expert, order, out, row, inside, block,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, limit, alpha,
    GATED: tl.constexpr, CLAMPED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Add the bias, and write total (ROWS, COLUMNS): hidden units in the order of the blocks if it
    is GATED, and otherwise outputs in the order of the choices.
    """
    if GATED:
        HALF: tl.constexpr = COLUMNS // 2
        column = block * HALF + tl.arange(0, HALF)
        used = column < SIZE // 2
        gate, up = tl.split(tl.reshape(total, (ROWS, HALF, 2)))
        if BIAS:
            at = bias + expert.to(tl.int64) * SIZE + 2 * column
            gate += tl.load(at, mask=used, other=0.0).to(tl.float32)[None, :]
            up += tl.load(at + 1, mask=used, other=0.0).to(tl.float32)[None, :]
        number = gated(gate, up, limit, alpha, CLAMPED)
        place = row.to(tl.int64)[:, None] * (SIZE // 2) + column[None, :]
    else:
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        used = column < SIZE
        number = total
        if BIAS:
            at = bias + expert.to(tl.int64) * SIZE + column
            number += tl.load(at, mask=used, other=0.0).to(tl.float32)[None, :]
        choice = tl.load(order + row, mask=inside, other=0)
        place = choice.to(tl.int64)[:, None] * SIZE + column[None, :]
    mask = inside[:, None] & used[None, :]
    tl.store(out + place, number.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["blocks"])
def _packed(
    x, pairs, scales, bias, order, starts, owners, out, blocks, limit, alpha,
    CHOSEN: tl.constexpr, SIZE: tl.constexpr, INPUTS: tl.constexpr, DEPTH: tl.constexpr,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr,
    BULK: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    GATED: tl.constexpr, CLAMPED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """x: rows in the order of the blocks, or of the tokens if CHOSEN is not 0. BULK: x and pairs
    are descriptors, whose tiles the tensor memory accelerator fetches.
    """
    mine, across = _place(blocks, COLUMNS, TOGETHER, SIZE)
    expert = tl.load(owners + mine)
    if expert < EXPERTS:
        begin = tl.load(starts + expert)
        end = tl.load(starts + expert + 1)
        first = begin + (mine - (begin // ROWS + expert)) * ROWS
        row = first + tl.arange(0, ROWS)
        inside = row < end
        above = expert.to(tl.int64) * SIZE  # rows of the matrices before this one
        column = across * COLUMNS + tl.arange(0, COLUMNS)
        used = column < SIZE
        source = row
        if CHOSEN:
            source = tl.load(order + row, mask=inside, other=0) // CHOSEN
        source = tl.where(inside, source, 0).to(tl.int64)
        matrix = above + tl.minimum(column, SIZE - 1)
        lane = tl.arange(0, 32)
        scale = scales + matrix * (DEPTH // 64)
        total = tl.zeros((COLUMNS, ROWS), tl.float32)
        # Too few scales for an asynchronous copy: the next step's are carried in registers.
        pair = tl.load(scale)
        for k in range(0, DEPTH, 64):
            if BULK:
                low = tl.trans(x.load([first, k]))
                high = tl.trans(x.load([first, k + 32]))
                packed = pairs.load([above.to(tl.int32) + across * COLUMNS, k // 2])
            else:
                at = x + source[None, :] * INPUTS + (k + lane)[:, None]
                if DEPTH == INPUTS:
                    low = tl.load(at)
                    high = tl.load(at + 32)
                else:
                    low = tl.load(at, mask=(k + lane < INPUTS)[:, None], other=0.0)
                    high = tl.load(at + 32, mask=(k + 32 + lane < INPUTS)[:, None], other=0.0)
                packed = tl.load(pairs + matrix[:, None] * (DEPTH // 2) + (k // 2 + lane)[None, :])
            following = tl.load(scale + k // 64 + 1, mask=used & (k + 64 < DEPTH), other=0)
            a, b = tiles(in_order(packed, COLUMNS), pair, WIDE)
            pair = following
            if WIDE:
                low = low.to(tl.float32)
                high = high.to(tl.float32)
            total = tl.dot(a, low, total, input_precision=PRECISION)
            total = tl.dot(b, high, total, input_precision=PRECISION)
        _finish(
            tl.trans(total), bias, expert, order, out, row, inside, across,
            SIZE, ROWS, COLUMNS, limit, alpha, GATED, CLAMPED, BIAS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["blocks"])
def _dense(
    x, matrices, bias, order, starts, owners, out, blocks, limit, alpha,
    stride_expert, stride_row, stride_column,
    CHOSEN: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr, GATED: tl.constexpr, CLAMPED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    mine, across = _place(blocks, COLUMNS, TOGETHER, SIZE)
    expert = tl.load(owners + mine)
    if expert < EXPERTS:
        begin = tl.load(starts + expert)
        end = tl.load(starts + expert + 1)
        row = begin + (mine - (begin // ROWS + expert)) * ROWS + tl.arange(0, ROWS)
        inside = row < end
        column = tl.minimum(across * COLUMNS + tl.arange(0, COLUMNS), SIZE - 1).to(tl.int64)
        source = row
        if CHOSEN:
            source = tl.load(order + row, mask=inside, other=0) // CHOSEN
        source = tl.where(inside, source, 0).to(tl.int64)
        lane = tl.arange(0, STEP)
        left = x + source[:, None] * DEPTH + lane[None, :]
        right = matrices + expert.to(tl.int64) * stride_expert + column[None, :] * stride_row
        right += lane[:, None] * stride_column
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, DEPTH, STEP):
            if DEPTH % STEP == 0:
                a = tl.load(left)
                b = tl.load(right)
            else:
                a = tl.load(left, mask=(k + lane < DEPTH)[None, :], other=0.0)
                b = tl.load(right, mask=(k + lane < DEPTH)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
            left += STEP
            right += STEP * stride_column
        _finish(
            total, bias, expert, order, out, row, inside, across,
            SIZE, ROWS, COLUMNS, limit, alpha, GATED, CLAMPED, BIAS,
        )  # fmt: skip


@triton.jit
def _gather(x, order, out, CHOSEN: tl.constexpr, SIZE: tl.constexpr, LANES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * LANES + tl.arange(0, LANES)
    token = (tl.load(order + row) // CHOSEN).to(tl.int64)
    number = tl.load(x + token * SIZE + column, mask=column < SIZE)
    tl.store(out + row * SIZE + column, number, mask=column < SIZE)


@triton.jit
def _sum(
    outputs, weights, residual, out,
    CHOSEN: tl.constexpr, SIZE: tl.constexpr, LANES: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The weighted outputs of a token's experts, in the order of its choices."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = column < SIZE
    total = tl.zeros((LANES,), tl.float32)
    for i in tl.static_range(CHOSEN):
        choice = token * CHOSEN + i
        number = tl.load(outputs + choice * SIZE + column, mask=inside, other=0.0)
        total += number.to(tl.float32) * tl.load(weights + choice)
    place = token * SIZE + column
    if RESIDUAL:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def moe(
    x: Tensor, routing: Routing, experts: ExpertWeights, residual: Tensor | None, out: Tensor
) -> None:
    """Backend.moe of tokens x (tokens, hidden) into `out`, the residual added."""
    tokens, size = x.shape
    chosen = routing.experts.shape[1]
    choices, count = tokens * chosen, experts.gate_up.shape[0]
    packed = isinstance(experts.gate_up, PairedMXFP4)
    blocks = blocks_of(card(x.device), choices / count, packed, x.element_size())
    order = sort(routing.experts, count, blocks.rows)
    hidden = x.new_empty(choices, experts.down.shape[2])
    outputs = x.new_empty(choices, size)
    rows, gathered = x, False
    if packed and _bulk(x, blocks, size):
        rows, gathered = x.new_empty(choices, size), True
        launch(
            _gather, (choices, ceil_div(size, _LANES)), x, order.order, rows,
            CHOSEN=chosen, SIZE=size, LANES=_LANES,
        )  # fmt: skip
    product = _packed_product if packed else _dense_product
    product(rows, experts, order, hidden, (0 if gathered else chosen, True, blocks))
    product(hidden, experts, order, outputs, (0, False, blocks))
    launch(
        _sum, (tokens, ceil_div(size, _LANES)),
        outputs, routing.weights, x if residual is None else residual, out,
        CHOSEN=chosen, SIZE=size, LANES=_LANES, RESIDUAL=residual is not None,
    )  # fmt: skip


def _bulk(x: Tensor, blocks: Blocks, inputs: int) -> bool:
    """Whether tiles come through descriptors: large blocks, in rows that begin at 16 bytes."""
    return blocks.rows >= 128 and x.element_size() == 2 and inputs % 8 == 0


_Form = tuple[int, bool, Blocks]  # CHOSEN of the kernels, whether it is gate_up, the block shapes


def _packed_product(
    x: Tensor, experts: ExpertWeights, order: Sorted, out: Tensor, form: _Form
) -> None:
    chosen, first, blocks = form
    stack = experts.gate_up if first else experts.down
    bias = experts.gate_up_bias if first else experts.down_bias
    assert isinstance(stack, PairedMXFP4)
    count, size, inputs = stack.shape
    bulk = not chosen and _bulk(x, blocks, inputs)
    rows: Any = x
    pairs: Any = stack.pairs
    if bulk:
        rows = TensorDescriptor.from_tensor(x, [blocks.rows, GROUP // 2])
        flat = stack.pairs.view(count * size, stack.depth // 2)
        pairs = TensorDescriptor.from_tensor(flat, [blocks.columns, GROUP // 2])
    limit, alpha, clamped = gate_arguments(experts.activation)
    launch(
        _packed, (len(order.owners) * ceil_div(size, blocks.columns),),
        rows, pairs, stack.scales.view(torch.int16), x if bias is None else bias,
        order.order, order.starts, order.owners, out, len(order.owners), limit, alpha,
        CHOSEN=chosen, SIZE=size, INPUTS=inputs, DEPTH=stack.depth, EXPERTS=count,
        ROWS=blocks.rows, COLUMNS=blocks.columns, TOGETHER=blocks.together, BULK=bulk,
        WIDE=wide(x), PRECISION=precision(x, packed=True), GATED=first, CLAMPED=clamped,
        BIAS=bias is not None, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def _dense_product(
    x: Tensor, experts: ExpertWeights, order: Sorted, out: Tensor, form: _Form
) -> None:
    chosen, first, blocks = form
    stack = experts.gate_up if first else experts.down
    bias = experts.gate_up_bias if first else experts.down_bias
    assert isinstance(stack, Tensor)
    count, size, inputs = stack.shape
    limit, alpha, clamped = gate_arguments(experts.activation)
    launch(
        _dense, (len(order.owners) * ceil_div(size, blocks.columns),),
        x, stack, x if bias is None else bias,
        order.order, order.starts, order.owners, out, len(order.owners), limit, alpha,
        *stack.stride(),
        CHOSEN=chosen, SIZE=size, DEPTH=inputs, EXPERTS=count,
        ROWS=blocks.rows, COLUMNS=blocks.columns, STEP=blocks.depth, TOGETHER=blocks.together,
        PRECISION=precision(x, packed=False), GATED=first, CLAMPED=clamped,
        BIAS=bias is not None, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
