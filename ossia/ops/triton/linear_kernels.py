"""Kernels of dense and int8 matrices: one for few vectors, whose time is that of reading the
weights, and one with tiles for more.

Up to three matrices of one x are one launch: the programs of the second follow those of the first.
`second` and `third` are the distances of their tensors from those of the first, in elements,
because a pointer that is chosen at run time would lose its alignment.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ossia.ops.triton.launch import begin, fetch


@triton.jit
def _matrix(block, blocks, rows, more_rows):
    """The matrix of a program and the block of its rows: first, second or third by `blocks`, the
    blocks of the first and of the first two.
    """
    number = (block >= blocks[0]).to(tl.int32) + (block >= blocks[1]).to(tl.int32)
    first = tl.where(number == 0, 0, tl.where(number == 1, blocks[0], blocks[1]))
    count = tl.where(number == 0, rows, tl.where(number == 1, more_rows[0], more_rows[1]))
    return number, block - first, count


@triton.jit
def _shift(number, distances):
    return tl.where(number == 0, 0, tl.where(number == 1, distances[0], distances[1]))


@triton.jit
def inverse_root(squares, size, eps):
    """One over the root mean square, of a sum of squares; NaN where that overflows."""
    inverse = 1 / tl.sqrt_rn(squares / size + eps)
    # One over infinity would make zeros of all, a finite and wrong text.
    return tl.where(inverse == 0, float("nan"), inverse)


@triton.jit
def _chunks(
    weight, scales, start, row, real, first, cols, groups,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
    INT8: tl.constexpr,
):  # fmt: skip
    """UNROLL chunks of each row from column `first` on, and their scales if they are int8. All are
    zeros behind the end.
    """
    column = first + tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (ROWS, CHUNK))
    tiles = ()
    factors = ()
    for i in tl.static_range(UNROLL):
        here = column + i * CHUNK
        mask = (real & (first < cols))[:, None] if EVEN else real[:, None] & (here < cols)
        tile = tl.load(weight + start + here, mask=mask, other=0, eviction_policy="evict_first")
        tiles = tiles + (tile,)
        if INT8:  # a chunk is a group
            group = first // CHUNK + i
            place = scales + row.to(tl.int64) * groups + group
            factors = factors + (tl.load(place, mask=real & (group < groups), other=0.0),)
    return tiles, factors


@triton.jit
def _added(
    sums, squares, tile, x, gain, column, cols,
    TOKENS: tl.constexpr, EVEN: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """The sums plus the products of a tile at these columns with each of TOKENS vectors, and with
    NORM the squares plus the vectors' own.
    """
    if NORM:
        tile = tile * tl.load(gain + column, mask=column < cols, other=0.0).to(tl.float32)
    after = ()
    more = ()
    for t in tl.static_range(TOKENS):
        if EVEN:
            numbers = tl.load(x + t * cols + column)
        else:
            numbers = tl.load(x + t * cols + column, mask=column < cols, other=0.0)
        numbers = numbers.to(tl.float32)
        after = after + (sums[t] + tile * numbers,)
        more = more + (squares[t] + numbers * numbers if NORM else squares[t],)
    return after, more


@triton.jit
def vectors(
    x, weight, scales, bias, residual, out, cols, groups, blocks, rows, more_rows,
    weights_apart, scales_apart, biases_apart, outs_apart, gain, eps,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, UNROLL: tl.constexpr,
    EVEN: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr,
    NORM: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a matrix times each of TOKENS vectors; a warp has a row, CHUNK numbers of it at
    a time. The loads of UNROLL chunks are on their way together, and before them those of the
    previous ones are used.

    NORM: the vectors are divided by their root mean square, which is done to the sums, and
    multiplied by `gain`.
    """
    found = _matrix(tl.program_id(0), blocks, rows, more_rows)
    number, block, count = found
    weight += _shift(number, weights_apart)
    row = block * ROWS + tl.arange(0, ROWS)
    real = row < count
    # Each warp loads x for itself, without a barrier: it lies in the nearest cache.
    column = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (ROWS, CHUNK))
    start = row[:, None].to(tl.int64) * cols
    if INT8:
        scales += _shift(number, scales_apart)
    sums = ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros((ROWS, CHUNK), tl.float32),)
    squares = sums
    tiles, factors = _chunks(
        weight, scales, start, row, real, 0, cols, groups, ROWS, CHUNK, UNROLL, EVEN, INT8
    )
    own = tl.minimum(ROWS, count - block * ROWS) * cols  # numbers, behind one another
    size: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
    fetch(weight + (block * ROWS).to(tl.int64) * cols, own, size, EARLY)
    begin(EARLY)
    for first in range(0, cols, CHUNK * UNROLL):
        following = _chunks(
            weight, scales, start, row, real, first + CHUNK * UNROLL, cols, groups,
            ROWS, CHUNK, UNROLL, EVEN, INT8,
        )  # fmt: skip
        for i in tl.static_range(UNROLL):
            here = first + i * CHUNK + column
            tile = tiles[i].to(tl.float32)
            if INT8:
                tile = tile * factors[i][:, None]
            sums, squares = _added(
                sums, squares, tile, x, gain, here, cols, TOKENS, EVEN, NORM
            )  # fmt: skip
        tiles, factors = following
    out += _shift(number, outs_apart)
    for t in tl.static_range(TOKENS):
        result = tl.sum(sums[t], 1)
        if NORM:
            result *= inverse_root(tl.sum(squares[t], 1), cols, eps)
        if BIAS:
            shift = _shift(number, biases_apart)
            result += tl.load(bias + shift + row, mask=real, other=0.0).to(tl.float32)
        if RESIDUAL:
            result += tl.load(residual + t * count + row, mask=real, other=0.0).to(tl.float32)
        tl.store(out + t * count + row, result.to(out.dtype.element_ty), mask=real)


@triton.jit
def matrices(
    x, weight, scales, bias, residual, out, tokens, cols, groups, blocks, rows, more_rows,
    weights_apart, scales_apart, biases_apart, outs_apart,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, EVEN: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A tile of TOKENS tokens times ROWS rows of a matrix."""
    found = _matrix(tl.program_id(1), blocks, rows, more_rows)
    number, block, count = found
    weight += _shift(number, weights_apart)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = block * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLS)
    there, real = token < tokens, row < count
    left = x + token[:, None].to(tl.int64) * cols + column[None, :]
    right = weight + row[None, :].to(tl.int64) * cols + column[:, None]
    if INT8:
        scales += _shift(number, scales_apart)
    if TOKENS <= 16:  # each matrix is read once
        own = tl.minimum(ROWS, count - block * ROWS) * cols
        size: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
        fetch(weight + (block * ROWS).to(tl.int64) * cols, own, size, EARLY)
    begin(EARLY)
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for first in range(0, cols, COLS):
        if EVEN:
            numbers = tl.load(left + first, mask=there[:, None], other=0.0)
            tile = tl.load(right + first, mask=real[None, :], other=0)
        else:
            inside = column < cols - first
            numbers = tl.load(left + first, mask=there[:, None] & inside[None, :], other=0.0)
            tile = tl.load(right + first, mask=inside[:, None] & real[None, :], other=0)
        if INT8:  # a step is a group
            group = row.to(tl.int64) * groups + first // COLS
            scale = tl.load(scales + group, mask=real, other=0.0)
            part = tl.dot(numbers, tile.to(numbers.dtype), input_precision=PRECISION)
            sums += part * scale[None, :]
        else:
            sums = tl.dot(numbers, tile, sums, input_precision=PRECISION)
    mask = there[:, None] & real[None, :]
    place = token[:, None].to(tl.int64) * count + row[None, :]
    if BIAS:
        shift = _shift(number, biases_apart)
        sums += tl.load(bias + shift + row, mask=real, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        sums += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    out += _shift(number, outs_apart)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=mask)
