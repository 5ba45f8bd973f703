"""Kernels of attention over whole rows, forward and backward: FlashAttention-2 (Dao 2023,
https://arxiv.org/abs/2307.08691) with windows, sinks, packed documents and dropout.

q, out and their gradients are (batch, length, heads, size), k and v (batch, length, kv_heads,
size). What a query sees is one range of positions: it ends at the query, and begins at the first
token of its document or at the edge of the window. Neither bound decreases along a row, so the
first and the last row of a tile bound the loop over the others. Scores are in units of log2. No sum
is made with atomics, so equal inputs give equal bits.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)  # the maximum of no scores: minus infinity less it is no NaN


@triton.jit
def _tile(x, batch, length, position, head, HEADS: tl.constexpr, SIZE: tl.constexpr,
          WIDTH: tl.constexpr):  # fmt: skip
    """Pointers to (positions, WIDTH) of one head, and which of them exist."""
    dim = tl.arange(0, WIDTH)
    row = (batch.to(tl.int64) * length + position) * HEADS + head
    mask = (position < length)[:, None] & (dim < SIZE)[None, :]
    return x + row[:, None] * SIZE + dim[None, :], mask


@triton.jit
def _first_seen(firsts, batch, length, row, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The first position that each row sees; those behind the end count as the last row."""
    row = tl.minimum(row, length - 1)
    first = row * 0
    if DOCUMENTS:
        first = tl.load(firsts + batch.to(tl.int64) * length + row)
    if WINDOW > 0:
        first = tl.maximum(first, row - (WINDOW - 1))
    return first


@triton.jit
def _kept(seed, pair, length, row, col, DROPOUT: tl.constexpr):
    """Which probabilities dropout keeps; those of a head have a stream of their own."""
    return tl.rand(tl.load(seed) + pair, row * length + col) >= DROPOUT


@triton.jit
def _online(
    state, q, k, v, seed, batch, length, pair, head, row, first, start,
    KV_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, COLS: tl.constexpr,
    DROPOUT: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, over the keys from `start` on."""
    largest, total, sums = state
    col = start + tl.arange(0, COLS)
    keys, mask = _tile(k, batch, length, col, head, KV_HEADS, SIZE, WIDTH)
    values, _ = _tile(v, batch, length, col, head, KV_HEADS, SIZE, WIDTH)
    key = tl.load(keys, mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * (SIZE**-0.5 * LOG2_E)
    if MASKED:
        visible = (col[None, :] >= first[:, None]) & (col[None, :] <= row[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(largest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(largest - higher)
    total = total * shrink + tl.sum(weights, 1)
    if DROPOUT > 0:
        kept = _kept(seed, pair, length, row[:, None], col[None, :], DROPOUT)
        weights = tl.where(kept, weights / (1 - DROPOUT), 0.0)
    value = tl.load(values, mask=mask, other=0.0)
    sums = sums * shrink[:, None]
    sums = tl.dot(weights.to(value.dtype), value, sums, input_precision=PRECISION)
    return higher, total, sums


@triton.jit
def forward(
    q, k, v, sinks, firsts, seed, out, lse, length,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    DOCUMENTS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head. lse (batch, heads, length): log2 of each row's sum of
    exponentials, the sink's among them.
    """
    # The last rows have the most keys, so they come first.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    head, batch = tl.program_id(1), tl.program_id(2)
    pair = batch * HEADS + head
    shared = head // (HEADS // KV_HEADS)
    row = start + tl.arange(0, ROWS)
    queries, exists = _tile(q, batch, length, row, head, HEADS, SIZE, WIDTH)
    query = tl.load(queries, mask=exists, other=0.0)
    first = _first_seen(firsts, batch, length, row, WINDOW, DOCUMENTS)
    largest = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if SINKS:
        largest = tl.zeros((ROWS,), tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total += 1
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    state = (largest, total, sums)
    # All rows see every key from `inner` to `start`.
    begin = tl.min(first) // COLS * COLS
    inner = tl.minimum((tl.max(first) + COLS - 1) // COLS * COLS, start)
    for i in range(begin, inner, COLS):
        state = _online(
            state, query, k, v, seed, batch, length, pair, shared, row, first, i,
            KV_HEADS, SIZE, WIDTH, COLS, DROPOUT, True, PRECISION,
        )  # fmt: skip
    for i in range(inner, start, COLS):
        state = _online(
            state, query, k, v, seed, batch, length, pair, shared, row, first, i,
            KV_HEADS, SIZE, WIDTH, COLS, DROPOUT, False, PRECISION,
        )  # fmt: skip
    for i in range(start, tl.minimum(start + ROWS, length), COLS):
        state = _online(
            state, query, k, v, seed, batch, length, pair, shared, row, first, i,
            KV_HEADS, SIZE, WIDTH, COLS, DROPOUT, True, PRECISION,
        )  # fmt: skip
    largest, total, sums = state
    outputs, _ = _tile(out, batch, length, row, head, HEADS, SIZE, WIDTH)
    tl.store(outputs, (sums / total[:, None]).to(out.dtype.element_ty), mask=exists)
    place = pair.to(tl.int64) * length + row
    tl.store(lse + place, largest + tl.log2(total), mask=row < length)


@triton.jit
def prepare(
    gradient, out, sinks, lse, taken, d_sinks, length,
    HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """taken (batch, heads, length): each row's output times its gradient, which the softmax's
    gradient takes from every score's; d_sinks (batch * heads, blocks): a block's part of the
    gradient of the sink, whose column has no value.
    """
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = batch * HEADS + head
    row = block * ROWS + tl.arange(0, ROWS)
    outputs, exists = _tile(out, batch, length, row, head, HEADS, SIZE, WIDTH)
    gradients, _ = _tile(gradient, batch, length, row, head, HEADS, SIZE, WIDTH)
    output = tl.load(outputs, mask=exists, other=0.0).to(tl.float32)
    sums = tl.sum(output * tl.load(gradients, mask=exists, other=0.0).to(tl.float32), 1)
    place = pair.to(tl.int64) * length + row
    tl.store(taken + place, sums, mask=row < length)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        share = tl.exp2(sink - tl.load(lse + place, mask=row < length, other=float("inf")))
        tl.store(d_sinks + pair * tl.num_programs(0) + block, -tl.sum(share * sums))


@triton.jit
def keys_backward(
    gradient, q, k, v, lse, taken, ends, seed, d_k, d_v, length,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, from all queries that see them."""
    start = tl.program_id(0) * COLS
    shared, batch = tl.program_id(1), tl.program_id(2)
    col = start + tl.arange(0, COLS)
    keys, exists = _tile(k, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
    values, _ = _tile(v, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
    key = tl.load(keys, mask=exists, other=0.0)
    value = tl.load(values, mask=exists, other=0.0)
    # The first position that sees a key no more.
    inside = tl.minimum(col, length - 1)
    end = inside * 0 + length
    if DOCUMENTS:
        end = tl.load(ends + batch.to(tl.int64) * length + inside)
    if WINDOW > 0:
        end = tl.minimum(end, inside + WINDOW)
    last = tl.max(end)
    begin = start // ROWS * ROWS
    key_sums = tl.zeros((COLS, WIDTH), tl.float32)
    value_sums = tl.zeros((COLS, WIDTH), tl.float32)
    for each in range(HEADS // KV_HEADS):
        head = shared * (HEADS // KV_HEADS) + each
        pair = batch * HEADS + head
        for i in range(begin, last, ROWS):
            row = i + tl.arange(0, ROWS)
            queries, mask = _tile(q, batch, length, row, head, HEADS, SIZE, WIDTH)
            gradients, mask = _tile(gradient, batch, length, row, head, HEADS, SIZE, WIDTH)
            place = pair.to(tl.int64) * length + row
            query = tl.load(queries, mask=mask, other=0.0)
            scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
            sums = tl.load(lse + place, mask=row < length, other=float("inf"))
            weights = tl.exp2(scores * (SIZE**-0.5 * LOG2_E) - sums[None, :])
            visible = (row[None, :] >= col[:, None]) & (row[None, :] < end[:, None])
            weights = tl.where(visible, weights, 0.0)
            slope = tl.load(gradients, mask=mask, other=0.0)
            d_weights = tl.dot(value, tl.trans(slope), input_precision=PRECISION)
            dropped = weights
            if DROPOUT > 0:
                kept = _kept(seed, pair, length, row[None, :], col[:, None], DROPOUT)
                dropped = tl.where(kept, weights / (1 - DROPOUT), 0.0)
                d_weights = tl.where(kept, d_weights / (1 - DROPOUT), 0.0)
            value_sums = tl.dot(
                dropped.to(slope.dtype), slope, value_sums, input_precision=PRECISION
            )
            less = tl.load(taken + place, mask=row < length, other=0.0)
            d_scores = weights * (d_weights - less[None, :])
            key_sums = tl.dot(d_scores.to(query.dtype), query, key_sums, input_precision=PRECISION)
    stores, _ = _tile(d_k, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
    tl.store(stores, (key_sums * SIZE**-0.5).to(d_k.dtype.element_ty), mask=exists)
    stores, _ = _tile(d_v, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
    tl.store(stores, value_sums.to(d_v.dtype.element_ty), mask=exists)


@triton.jit
def queries_backward(
    gradient, q, k, v, lse, taken, firsts, seed, d_q, length,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WINDOW: tl.constexpr, DOCUMENTS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries of one head."""
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    head, batch = tl.program_id(1), tl.program_id(2)
    pair = batch * HEADS + head
    shared = head // (HEADS // KV_HEADS)
    row = start + tl.arange(0, ROWS)
    queries, exists = _tile(q, batch, length, row, head, HEADS, SIZE, WIDTH)
    gradients, _ = _tile(gradient, batch, length, row, head, HEADS, SIZE, WIDTH)
    query = tl.load(queries, mask=exists, other=0.0)
    slope = tl.load(gradients, mask=exists, other=0.0)
    place = pair.to(tl.int64) * length + row
    sums = tl.load(lse + place, mask=row < length, other=float("inf"))
    less = tl.load(taken + place, mask=row < length, other=0.0)
    first = _first_seen(firsts, batch, length, row, WINDOW, DOCUMENTS)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for i in range(tl.min(first) // COLS * COLS, tl.minimum(start + ROWS, length), COLS):
        col = i + tl.arange(0, COLS)
        keys, mask = _tile(k, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
        values, mask = _tile(v, batch, length, col, shared, KV_HEADS, SIZE, WIDTH)
        key = tl.load(keys, mask=mask, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        weights = tl.exp2(scores * (SIZE**-0.5 * LOG2_E) - sums[:, None])
        visible = (col[None, :] >= first[:, None]) & (col[None, :] <= row[:, None])
        weights = tl.where(visible, weights, 0.0)
        value = tl.load(values, mask=mask, other=0.0)
        d_weights = tl.dot(slope, tl.trans(value), input_precision=PRECISION)
        if DROPOUT > 0:
            kept = _kept(seed, pair, length, row[:, None], col[None, :], DROPOUT)
            d_weights = tl.where(kept, d_weights / (1 - DROPOUT), 0.0)
        d_scores = weights * (d_weights - less[:, None])
        found = tl.dot(d_scores.to(key.dtype), key, found, input_precision=PRECISION)
    stores, _ = _tile(d_q, batch, length, row, head, HEADS, SIZE, WIDTH)
    tl.store(stores, (found * SIZE**-0.5).to(d_q.dtype.element_ty), mask=exists)
