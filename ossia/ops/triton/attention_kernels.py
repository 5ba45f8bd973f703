"""Kernels of paged attention: keys and values appended to their pages, and the online softmax of
FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135) over them.

The query heads of a group are rows of one tile, so a key head is read once for all of them. Scores
are in units of log2, because exp2 is the card's own instruction. A sink is a first score of each
row: it seeds the running maximum and sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ossia.ops.triton.fp8 import decoded, encoded
from ossia.ops.triton.launch import begin

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)  # the maximum of no scores: minus infinity less it is no NaN


@triton.jit
def _search(keys, count, steps, wanted, BLOCK: tl.constexpr):
    """The last sequence whose first block of queries is not behind `wanted`.

    keys: the first query of each sequence, and their number. A sequence's blocks begin at
    first // BLOCK + sequence, so that each has room for all of its queries.
    """
    low = wanted * 0
    high = low + count
    for _ in range(steps):
        middle = (low + high) // 2
        first = tl.load(keys + middle)
        if BLOCK > 1:
            first = first // BLOCK + middle
        before = first <= wanted
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def _rotated(x, cos, sin, dim, mask, SIZE: tl.constexpr):
    """float32 tile of x + dim, rotated; `x`, `cos` and `sin` are pointers to rows."""
    half = SIZE // 2
    lower = dim < half
    pair = tl.where(lower, dim, dim - half)
    own = tl.load(x + dim, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + tl.where(lower, dim + half, dim - half), mask=mask, other=0.0)
    other = tl.where(lower, -other.to(tl.float32), other.to(tl.float32))
    cosine = tl.load(cos + pair, mask=mask, other=0.0)
    return own * cosine + other * tl.load(sin + pair, mask=mask, other=0.0)


@triton.jit
def _heads(x, cos, sin, token, row, dim, mask, SIZE: tl.constexpr, ROTATED: tl.constexpr):
    """The tile at x + row + dim, rotated by the tokens' angles and rounded to its type."""
    if ROTATED:
        half = token.to(tl.int64) * (SIZE // 2)
        turned = _rotated(x + row, cos + half, sin + half, dim, mask, SIZE)
        return turned.to(x.dtype.element_ty)
    return tl.load(x + row + dim, mask=mask, other=0.0)


@triton.jit
def _newest(
    state, tile, k, v, cos, sin, keys, values, key_scales, value_scales,
    sequence, head, length, page, owner, k_row, v_row,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr,
    ROTATED: tl.constexpr, QUANTIZED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The online softmax's step over a sequence's newest key and value, which the program that is
    their owner writes to the page. Others see nothing.
    """
    largest, total, sums = state
    dim = tl.arange(0, WIDTH)[None, :]
    mask = (dim < SIZE) & owner
    wide = sequence.to(tl.int64)
    row = head * SIZE + dim * 0
    key = _heads(k + wide * k_row, cos, sin, sequence, row, dim, mask, SIZE, ROTATED)
    value = tl.load(v + wide * v_row + row + dim, mask=mask, other=0.0)
    slot = (page.to(tl.int64) * PAGE + (length - 1) % PAGE) * HEADS + head
    place = slot * SIZE + dim
    if QUANTIZED:
        key, key_scale = _quantized(key.to(tl.float32))
        value, value_scale = _quantized(value.to(tl.float32))
        one = tl.arange(0, 1)
        tl.store(key_scales + slot + one, key_scale, mask=(one == 0) & owner)
        tl.store(value_scales + slot + one, value_scale, mask=(one == 0) & owner)
    key = encoded(key, keys.dtype.element_ty, FORM)
    value = encoded(value, values.dtype.element_ty, FORM)
    tl.store(keys + place, key, mask=mask)
    tl.store(values + place, value, mask=mask)
    key = decoded(key, tl.float32, FORM)
    value = decoded(value, tl.float32, FORM)
    if QUANTIZED:
        key = key * key_scale[:, None]
        value = tl.where(owner, value * value_scale[:, None], 0.0)
    score = tl.sum(tile.to(tl.float32) * key, 1) * (SIZE**-0.5 * LOG2_E)
    score = tl.where(owner, score, float("-inf"))
    higher = tl.maximum(largest, score)
    weight = tl.exp2(score - higher)
    shrink = tl.exp2(largest - higher)
    return higher, total * shrink + weight, sums * shrink[:, None] + weight[:, None] * value


@triton.jit
def _quantized(x):
    """As `paged.quantize`: codes and scales of float32 rows (heads, dims)."""
    largest = tl.max(tl.where(x == x, tl.abs(x), float("inf")), 1)
    scale = tl.div_rn(largest, 127.0 + largest * 0)
    scale = tl.where(largest < float("inf"), scale, float("nan"))
    steps = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    # Adding 1.5 * 2**23 leaves no bits for fractions: rounded to nearest, ties to even.
    codes = (tl.where(scale[:, None] > 0, steps, 0.0) + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(codes, -127.0), 127.0), scale


@triton.jit
def append(
    k, v, cos, sin, keys, values, key_scales, value_scales,
    table, lengths, starts, k_row, v_row, columns, sequences, steps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
    ALL_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    SINGLE: tl.constexpr, ROTATED: tl.constexpr, QUANTIZED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """One token's keys, rotated, and values to their place in the pages."""
    token = tl.program_id(0)
    if SINGLE:
        sequence = token
        position = tl.load(lengths + token) - 1
    else:
        sequence = _search(starts, sequences, steps, token, 1)
        position = tl.load(lengths + sequence) - tl.load(starts + sequence + 1) + token
    page = tl.load(table + sequence.to(tl.int64) * columns + position // PAGE)
    slot = page.to(tl.int64) * PAGE + position % PAGE
    head = tl.arange(0, ALL_HEADS)
    dim = tl.arange(0, WIDTH)[None, :]
    mask = (head < HEADS)[:, None] & (dim < SIZE)
    row = head[:, None] * SIZE
    wide = token.to(tl.int64)
    key = _heads(k + wide * k_row, cos, sin, token, row, dim, mask, SIZE, ROTATED)
    value = tl.load(v + wide * v_row + row + dim, mask=mask, other=0.0)
    place = slot * (HEADS * SIZE) + row + dim
    if QUANTIZED:
        key, key_scale = _quantized(key.to(tl.float32))
        value, value_scale = _quantized(value.to(tl.float32))
        tl.store(key_scales + slot * HEADS + head, key_scale, mask=head < HEADS)
        tl.store(value_scales + slot * HEADS + head, value_scale, mask=head < HEADS)
    tl.store(keys + place, encoded(key, keys.dtype.element_ty, FORM), mask=mask)
    tl.store(values + place, encoded(value, values.dtype.element_ty, FORM), mask=mask)


@triton.jit
def _attend(
    state, q, keys, values, key_scales, value_scales, pages, first, low, high, position, head,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr, QUANTIZED: tl.constexpr,
    FORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: the keys at positions `first` and on, of low .. high - 1.

    MASKED: not all of them are visible to all rows, or exist.
    """
    largest, total, sums = state
    place = first + tl.arange(0, KEYS)
    dim = tl.arange(0, WIDTH)
    exists = (place >= low) & (place < high)
    if MASKED:
        page = tl.load(pages + place // PAGE, mask=exists, other=0)
    else:
        page = tl.load(pages + place // PAGE)
    slot = (page.to(tl.int64) * PAGE + place % PAGE) * HEADS + head
    inside = dim < SIZE
    mask = exists[:, None] & inside[None, :]
    where = slot[:, None] * SIZE + dim[None, :]
    if MASKED or WIDTH > SIZE:
        key = tl.load(keys + where, mask=mask, other=0.0)
    else:
        key = tl.load(keys + where)
    scores = tl.dot(q, tl.trans(decoded(key, q.dtype, FORM)), input_precision=PRECISION)
    scores = scores * (SIZE**-0.5 * LOG2_E)
    if QUANTIZED:
        scores = scores * tl.load(key_scales + slot, mask=exists, other=0.0)[None, :]
    if MASKED:
        distance = position[:, None] - place[None, :]
        visible = (distance >= 0) & exists[None, :]
        if WINDOW > 0:
            visible = visible & (distance < WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(largest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(largest - higher)
    total = total * shrink + tl.sum(weights, 1)
    if MASKED or WIDTH > SIZE:
        value = tl.load(values + where, mask=mask, other=0.0)
    else:
        value = tl.load(values + where)
    if QUANTIZED:
        weights = weights * tl.load(value_scales + slot, mask=exists, other=0.0)[None, :]
    sums = sums * shrink[:, None]
    sums = tl.dot(
        weights.to(q.dtype), decoded(value, q.dtype, FORM), sums, input_precision=PRECISION
    )
    return higher, total, sums


@triton.jit
def _seed(sinks, head, mask, SINKS: tl.constexpr):
    """The running maximum and sum of rows that have seen no key yet, without a sink outside of the
    mask.
    """
    if SINKS:
        sink = tl.load(sinks + head, mask=mask, other=0.0).to(tl.float32)
        return tl.where(mask, sink * LOG2_E, LOWEST), mask.to(tl.float32)
    return tl.full(head.shape, LOWEST, tl.float32), tl.zeros(head.shape, tl.float32)


@triton.jit
def prefill(
    q, cos, sin, keys, values, key_scales, value_scales, sinks, out,
    table, lengths, starts, q_row, columns, sequences, steps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, ROTATED: tl.constexpr, SINKS: tl.constexpr, QUANTIZED: tl.constexpr,
    FORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of one sequence's queries, all heads of a group: QUERIES * ROWS rows of a tile."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    sequence = _search(starts, sequences, steps, block, QUERIES)
    start = tl.load(starts + sequence).to(tl.int32)
    count = tl.load(starts + sequence + 1).to(tl.int32) - start
    before = tl.load(lengths + sequence).to(tl.int32) - count  # positions that were there already
    first = (block - (start // QUERIES + sequence)) * QUERIES
    if first < count:
        rows = tl.arange(0, QUERIES * ROWS)
        query = first + rows // ROWS
        query_head = head * GROUP + rows % ROWS
        real = (query < count) & (rows % ROWS < GROUP)
        dim = tl.arange(0, WIDTH)[None, :]
        mask = real[:, None] & (dim < SIZE)
        token = (start + query)[:, None]
        row = token.to(tl.int64) * q_row + query_head[:, None] * SIZE
        tile = _heads(q, cos, sin, token, row, dim, mask, SIZE, ROTATED)
        position = before + query
        largest, total = _seed(sinks, query_head, real, SINKS)
        state = largest, total, tl.zeros((QUERIES * ROWS, WIDTH), tl.float32)
        pages = table + sequence.to(tl.int64) * columns
        high = before + tl.minimum(first + QUERIES, count)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(before + first - WINDOW + 1, 0)
        masked = low // KEYS * KEYS
        if WINDOW == 0:  # keys that all queries see need no mask
            masked = (before + first + 1) // KEYS * KEYS
            for i in range(0, masked, KEYS):
                state = _attend(
                    state, tile, keys, values, key_scales, value_scales,
                    pages, i, low, high, position, head, HEADS, SIZE, PAGE, WIDTH,
                    KEYS, WINDOW, False, QUANTIZED, FORM, PRECISION,
                )  # fmt: skip
        for i in range(masked, high, KEYS):
            state = _attend(
                state, tile, keys, values, key_scales, value_scales,
                pages, i, low, high, position, head, HEADS, SIZE, PAGE, WIDTH,
                KEYS, WINDOW, True, QUANTIZED, FORM, PRECISION,
            )  # fmt: skip
        largest, total, sums = state
        place = token.to(tl.int64) * (HEADS * GROUP * SIZE) + query_head[:, None] * SIZE + dim
        tl.store(out + place, (sums / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def decode(
    q, cos, sin, keys, values, key_scales, value_scales, sinks, out, partial, sums_of, counters,
    table, lengths, q_row, columns, k, v, k_row, v_row,
    HEADS: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    WINDOW: tl.constexpr, ROTATED: tl.constexpr, SINKS: tl.constexpr, QUANTIZED: tl.constexpr,
    FORM: tl.constexpr, PRECISION: tl.constexpr, APPEND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One sequence's only query, all heads of a group, over one of PARTS parts of what it sees.

    The last part to finish joins them all. partial: float32 (2, sequences, heads, PARTS), each
    part's maxima and sums of weights; sums_of: float32 (sequences, heads, PARTS, size), its
    weighted sums of values. APPEND: the sequence's newest key and value are not in the pages yet,
    and its last part writes them.
    """
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    low = length * 0
    if WINDOW > 0:
        low = tl.maximum(length - WINDOW, 0)
    share = tl.cdiv(length - low, PARTS * KEYS) * KEYS
    used = tl.cdiv(length - low, share)
    begin(EARLY)
    if part < used:
        rows = tl.arange(0, ROWS)
        real = rows < GROUP
        query_head = head * GROUP + rows
        dim = tl.arange(0, WIDTH)[None, :]
        mask = real[:, None] & (dim < SIZE)
        row = sequence.to(tl.int64) * q_row + query_head[:, None] * SIZE
        tile = _heads(q, cos, sin, sequence, row, dim, mask, SIZE, ROTATED)
        largest, total = _seed(sinks, query_head, real & (part == 0), SINKS)  # a sink counts once
        state = largest, total, tl.zeros((ROWS, WIDTH), tl.float32)
        pages = table + sequence.to(tl.int64) * columns
        first = low + part * share
        high = tl.minimum(first + share, length)
        if APPEND:
            owner = part == used - 1
            newest = tl.load(pages + (length - 1) // PAGE)
            state = _newest(
                state, tile, k, v, cos, sin, keys, values, key_scales, value_scales,
                sequence, head, length, newest, owner, k_row, v_row,
                HEADS, SIZE, PAGE, WIDTH, ROTATED, QUANTIZED, FORM,
            )  # fmt: skip
            high = tl.minimum(high, length - 1)
        position = tl.zeros((ROWS,), tl.int32) + length
        for i in range(first, high, KEYS):
            state = _attend(
                state, tile, keys, values, key_scales, value_scales,
                pages, i, first, high, position, head, HEADS, SIZE, PAGE, WIDTH,
                KEYS, 0, True, QUANTIZED, FORM, PRECISION,
            )  # fmt: skip
        _finish(
            state, out, partial, sums_of, counters, sequence, head, part, used, real,
            HEADS, GROUP, SIZE, WIDTH, PARTS,
        )  # fmt: skip


@triton.jit
def _finish(
    state, out, partial, sums_of, counters, sequence, head, part, used, real,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Write a part's result; the last part to finish joins them all."""
    largest, total, sums = state
    dim = tl.arange(0, WIDTH)[None, :]
    mask = real[:, None] & (dim < SIZE)
    group = sequence.to(tl.int64) * (HEADS * GROUP) + head * GROUP
    place = group + tl.arange(0, real.shape[0])
    if PARTS == 1:
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + place[:, None] * SIZE + dim, result, mask=mask)
    else:
        shift = tl.num_programs(0).to(tl.int64) * (HEADS * GROUP * PARTS)
        tl.store(partial + place * PARTS + part, largest, mask=real)
        tl.store(partial + shift + place * PARTS + part, total, mask=real)
        tl.store(sums_of + (place * PARTS + part)[:, None] * SIZE + dim, sums, mask=mask)
        tl.debug_barrier()  # all of the program's writes are behind it
        counter = counters + sequence * HEADS + head
        if tl.atomic_add(counter, 1, sem="acq_rel") == used - 1:
            tl.store(counter, 0)
            for member in tl.static_range(GROUP):  # pyright: ignore[reportGeneralTypeIssues]
                _join(partial, sums_of, out, group + member, shift, used, SIZE, WIDTH, PARTS)


@triton.jit
def _join(
    partial, sums_of, out, place, shift, used,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The parts of one query head together, in their order."""
    part = tl.arange(0, PARTS)
    dim = tl.arange(0, WIDTH)
    done = part < used
    largest = tl.load(partial + place * PARTS + part, mask=done, other=LOWEST, cache_modifier=".cg")
    total = tl.load(
        partial + shift + place * PARTS + part, mask=done, other=0.0, cache_modifier=".cg"
    )
    weight = tl.exp2(largest - tl.max(largest, 0))
    mask = done[:, None] & (dim < SIZE)[None, :]
    where = (place * PARTS + part)[:, None] * SIZE + dim[None, :]
    sums = tl.load(sums_of + where, mask=mask, other=0.0, cache_modifier=".cg")
    result = tl.sum(sums * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + place * SIZE + dim, result.to(out.dtype.element_ty), mask=dim < SIZE)
