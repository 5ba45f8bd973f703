"""Kernels of a mixture of experts with a gradient: products with each expert's rows, the gated
activation, and the sum over a token's experts.

A row is one choice of a token. Rows are sorted by expert: `order` holds each row's choice (token *
CHOSEN + rank), `offsets` each expert's first row and, last, their number. Which expert a tile of
rows has is found on the device, so the host does not wait for the router. Every number is written
by one program, so equal inputs give equal bits.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ossia.ops.triton.gates import gated, gated_slopes


@triton.jit
def own_tile(offsets, EXPERTS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr):
    """Expert, first row and end of the rows of this program's tile; an expert of EXPERTS or more
    means none.
    """
    lane = tl.arange(0, LANES)
    known = lane < EXPERTS
    begin = tl.load(offsets + lane, mask=known, other=0)
    end = tl.load(offsets + lane + 1, mask=known, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    behind = tl.cumsum(tiles, 0)
    tile = tl.program_id(0)
    expert = tl.sum(tl.where(known & (behind <= tile), 1, 0), 0)
    own = lane == expert
    before = tl.sum(tl.where(own, behind - tiles, 0), 0)
    first = tl.sum(tl.where(own, begin, 0), 0) + (tile - before) * ROWS
    return expert, first, tl.sum(tl.where(own, end, 0), 0)


@triton.jit
def rows_from(
    first, end, order, CHOSEN: tl.constexpr, ROWS: tl.constexpr, GATHER: tl.constexpr
):  # fmt: skip
    """ROWS rows from `first` on, whether each lies before `end`, and where it is read: in a matrix
    of rows, or, if GATHER, in one with a row per token.
    """
    row = first + tl.arange(0, ROWS)
    exists = row < end
    source = row.to(tl.int64)
    if GATHER:
        source = tl.load(order + row, mask=exists, other=0).to(tl.int64) // CHOSEN
    return row, exists, source


@triton.jit
def products(
    x, weight, bias, order, offsets, out, depth, width, step, turn, size,
    EXPERTS: tl.constexpr, LANES: tl.constexpr, CHOSEN: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, DEPTH: tl.constexpr, GATHER: tl.constexpr, BIAS: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[row, n] = sum over k of x[row, k] * weight[expert, n, k] + bias[expert, n].

    depth and width: of k and n. step and turn: strides of n and k in weight, whose experts are
    `size` apart, and whose dtype may be another one. GATHER: x has a row per token. ADD: to what
    `out` holds.
    """
    expert, first, end = own_tile(offsets, EXPERTS, LANES, ROWS)
    if expert < EXPERTS:
        row, exists, source = rows_from(first, end, order, CHOSEN, ROWS, GATHER)
        col = tl.program_id(1) * COLS + tl.arange(0, COLS)
        inside = col < width
        own = weight + expert.to(tl.int64) * size
        sums = tl.zeros((ROWS, COLS), tl.float32)
        for i in range(0, depth, DEPTH):
            k = i + tl.arange(0, DEPTH)
            mask = k < depth
            left = tl.load(
                x + source[:, None] * depth + k[None, :],
                mask=exists[:, None] & mask[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(
                own + k[:, None] * turn + col[None, :] * step,
                mask=mask[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            sums = tl.dot(left, right.to(left.dtype), sums, input_precision=PRECISION)
        if BIAS:
            more = tl.load(bias + expert.to(tl.int64) * width + col, mask=inside, other=0.0)
            sums += more.to(tl.float32)[None, :]
        place = row.to(tl.int64)[:, None] * width + col[None, :]
        mask = exists[:, None] & inside[None, :]
        if ADD:
            sums += tl.load(out + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def weights_backward(
    gradient, x, order, offsets, d_weight, d_bias, width, depth,
    CHOSEN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
    GATHER: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_weight[expert, n, k] = sum over its rows of gradient[row, n] * x[row, k], and d_bias."""
    expert = tl.program_id(2).to(tl.int64)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    k = tl.program_id(0) * DEPTH + tl.arange(0, DEPTH)
    inside, mask = col < width, k < depth
    end = tl.load(offsets + expert + 1)
    sums = tl.zeros((COLS, DEPTH), tl.float32)
    biases = tl.zeros((COLS,), tl.float32)
    for i in range(tl.load(offsets + expert), end, ROWS):
        row, exists, source = rows_from(i, end, order, CHOSEN, ROWS, GATHER)
        left = tl.load(
            gradient + row.to(tl.int64)[None, :] * width + col[:, None],
            mask=exists[None, :] & inside[:, None], other=0.0,
        )  # fmt: skip
        right = tl.load(
            x + source[:, None] * depth + k[None, :], mask=exists[:, None] & mask[None, :],
            other=0.0,
        )  # fmt: skip
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
        if BIAS:
            biases += tl.sum(left.to(tl.float32), 1)
    place = (expert * width + col)[:, None] * depth + k[None, :]
    mask = inside[:, None] & mask[None, :]
    tl.store(d_weight + place, sums.to(d_weight.dtype.element_ty), mask=mask)
    if BIAS:  # noqa: SIM102 (Triton takes no constant and a number together)
        if tl.program_id(0) == 0:
            biases = biases.to(d_bias.dtype.element_ty)
            tl.store(d_bias + expert * width + col, biases, mask=inside)


@triton.jit
def activate(
    both, out, inter, limit, alpha,
    CLAMPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[row, i] = gated(both[row, 2 i], both[row, 2 i + 1])."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < inter
    pair = both + row * 2 * inter + 2 * lane
    gate = tl.load(pair, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pair + 1, mask=mask, other=0.0).to(tl.float32)
    found = gated(gate, up, limit, alpha, CLAMPED)
    tl.store(out + row * inter + lane, found.to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate_backward(
    gradient, both, hidden, d_both, inter, limit, alpha,
    CLAMPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of `activate`, and its output again."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < inter
    pair = row * 2 * inter + 2 * lane
    gate = tl.load(both + pair, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both + pair + 1, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(gradient + row * inter + lane, mask=mask, other=0.0).to(tl.float32)
    found = gated(gate, up, limit, alpha, CLAMPED)
    tl.store(hidden + row * inter + lane, found.to(hidden.dtype.element_ty), mask=mask)
    d_gate, d_up = gated_slopes(slope, gate, up, limit, alpha, CLAMPED)
    tl.store(d_both + pair, d_gate.to(d_both.dtype.element_ty), mask=mask)
    tl.store(d_both + pair + 1, d_up.to(d_both.dtype.element_ty), mask=mask)


@triton.jit
def combine(
    rows, places, weights, residual, out, width,
    CHOSEN: tl.constexpr, WEIGHTED: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[token] = residual[token] + sum over its choices of weight * rows[place of the choice]."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < width
    sums = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(CHOSEN):
        place = tl.load(places + token * CHOSEN + rank).to(tl.int64)
        value = tl.load(rows + place * width + lane, mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            value = value * tl.load(weights + token * CHOSEN + rank).to(tl.float32)
        sums += value
    if RESIDUAL:
        more = tl.load(residual + token * width + lane, mask=mask, other=0.0)
        sums = more.to(tl.float32) + sums
    tl.store(out + token * width + lane, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_backward(
    gradient, rows, order, weights, d_rows, d_weights, width,
    CHOSEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of a row and of its weight."""
    row = tl.program_id(0).to(tl.int64)
    choice = tl.load(order + row).to(tl.int64)
    weight = tl.load(weights + choice).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, width, BLOCK):
        lane = i + tl.arange(0, BLOCK)
        mask = lane < width
        slope = tl.load(gradient + choice // CHOSEN * width + lane, mask=mask, other=0.0)
        slope = slope.to(tl.float32)
        value = tl.load(rows + row * width + lane, mask=mask, other=0.0).to(tl.float32)
        total += slope * value
        found = (weight * slope).to(d_rows.dtype.element_ty)
        tl.store(d_rows + row * width + lane, found, mask=mask)
    tl.store(d_weights + choice, tl.sum(total, 0).to(d_weights.dtype.element_ty))


@triton.jit
def round_blocks(weight, out, blocks, BLOCKS: tl.constexpr):
    """Blocks of 32 numbers rounded to MXFP4 and back, as `mxfp4.quantize` rounds; NaN where it
    raises.
    """
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    place = block.to(tl.int64)[:, None] * 32 + tl.arange(0, 32)[None, :]
    mask = (block < blocks)[:, None]
    x = tl.load(weight + place, mask=mask, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 1)
    # A float32's exponent field is floor(log2) + 127; that of zeros and subnormals is 0.
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 129
    exponent = tl.minimum(tl.maximum(exponent, -127), 127)
    # 2**exponent in two factors, neither of which is subnormal.
    half = exponent >> 1
    low = ((half + 127) << 23).to(tl.float32, bitcast=True)
    high = ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)
    less = ((127 - half) << 23).to(tl.float32, bitcast=True)
    lesser = ((127 - exponent + half) << 23).to(tl.float32, bitcast=True)
    size = tl.abs(x) * less[:, None] * lesser[:, None]
    # Steps of 1/2 to 2, of 1 to 4 and of 2 to 6; adding 1.5 * 2**23 rounds ties to even.
    step = tl.where(size < 2, 0.5, tl.where(size < 4, 1.0, 2.0))
    rounded = (size / step + 12582912.0) - 12582912.0
    rounded = tl.minimum(rounded * step, 6.0) * low[:, None] * high[:, None]
    rounded = tl.where(x < 0, -rounded, rounded)
    infinite = (x != x) | (tl.abs(x) == float("inf"))
    rounded = tl.where(infinite, float("nan"), rounded)
    tl.store(out + place, rounded.to(out.dtype.element_ty), mask=mask)
