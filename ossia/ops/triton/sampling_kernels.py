"""The kernels of sampling. A row is divided into parts, of which each program takes one.

Sums are of integers, so their order does not matter, and products and sums in float32 are rounded
one by one: these kernels must be compiled without fused multiply-add.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ossia.ops.sampling import LOWEST, POWER, WEIGHT_BITS

DIGITS = 8  # of a key, four bits each
_LOWEST = tl.constexpr(LOWEST)
_POWER = tl.constexpr(POWER)
_EXPONENT = tl.constexpr(127 + WEIGHT_BITS)
_WHOLE = tl.constexpr(float(1 << 23))  # numbers from here on are whole
_MIDDLE = tl.constexpr(1.5 * (1 << 23))
_OFFSET = tl.constexpr(1 << 31)


@triton.jit
def _weigh(power):
    """As sampling.weigh."""
    power = tl.maximum(power, _LOWEST)
    whole = (power + _MIDDLE) - _MIDDLE  # rounded to nearest, ties to even
    part = power - whole
    value = tl.full(power.shape, _POWER[0], tl.float32)
    for i in tl.static_range(1, 7):
        value = value * part + _POWER[i]
    value = value * ((whole.to(tl.int32) + _EXPONENT) << 23).to(tl.float32, bitcast=True)
    value = tl.where(value < _WHOLE, (value + _WHOLE) - _WHOLE, value)
    return value.to(tl.int64)


@triton.jit
def _key(logit):
    """Integers in the order of the logits, from 0 to 2**32 - 1."""
    bits = tl.where(logit == 0, 0.0, logit).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + _OFFSET


@triton.jit
def _logit(key):
    """The inverse of `_key`."""
    bits = (key - _OFFSET).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _load(logits, bits, row, id, vocab, BITS: tl.constexpr):
    """Logits of a row, -inf where a constraint or the vocabulary ends it."""
    inside = id < vocab
    logit = tl.load(logits + row * vocab + id, mask=inside, other=-float("inf"))
    if BITS:
        word = tl.load(bits + row * ((vocab + 31) // 32) + id // 32, mask=inside, other=0)
        logit = tl.where((word >> (id % 32)) & 1 != 0, logit, -float("inf"))
    return logit


@triton.jit
def tops(logits, bits, values, places, vocab, parts, PART: tl.constexpr, BITS: tl.constexpr):
    """The largest logit of each part, NaN if one is, and its first id."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    id = part * PART + tl.arange(0, PART)
    logit = _load(logits, bits, row, id, vocab, BITS)
    largest = tl.max(logit, 0)
    place = tl.min(tl.where(logit == largest, id, vocab - 1), 0)
    broken = tl.sum((logit != logit).to(tl.int32), 0) > 0
    tl.store(values + row * parts + part, tl.where(broken, float("nan"), largest))
    tl.store(places + row * parts + part, place)


@triton.jit
def greedy(values, places, largest, ids, parts, WIDTH: tl.constexpr):
    """The largest logit of each row and its first id, -1 if it is not finite."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, WIDTH)
    inside = part < parts
    value = tl.load(values + row * parts + part, mask=inside, other=-float("inf"))
    place = tl.load(places + row * parts + part, mask=inside, other=0x7FFFFFFF)
    best = tl.max(value, 0)
    finite = (tl.sum((value != value).to(tl.int32), 0) == 0) & (tl.abs(best) < float("inf"))
    id = tl.min(tl.where(value == best, place, 0x7FFFFFFF), 0)
    tl.store(largest + row, best)
    tl.store(ids + row, tl.where(finite, id, -1).to(tl.int64))


@triton.jit
def _digit(counts, masses, state, i, target, parts, WIDTH: tl.constexpr, BY_MASS: tl.constexpr):
    """One more digit of the key at which the count, or the mass, of the logits from the largest on
    reaches the target. state: the digits so far, and count and mass of the logits above them.
    """
    part = tl.arange(0, WIDTH)
    digit = tl.arange(0, 16)
    at = (i * parts + part)[:, None] * 16 + digit[None, :]
    count = tl.sum(tl.load(counts + at, mask=(part < parts)[:, None], other=0), 0)
    mass = tl.sum(tl.load(masses + at, mask=(part < parts)[:, None], other=0), 0)
    higher = digit[None, :] > digit[:, None]
    above = state[1] + tl.sum(tl.where(higher, count[None, :], 0), 1)
    heavier = state[2] + tl.sum(tl.where(higher, mass[None, :], 0), 1)
    reached = heavier + mass >= target if BY_MASS else above + count >= target
    found = tl.max(tl.where(reached, digit, 0), 0)
    mine = digit == found
    above = tl.sum(tl.where(mine, above, 0), 0)
    heavier = tl.sum(tl.where(mine, heavier, 0), 0)
    return state[0] * 16 + found, above, heavier


@triton.jit
def _load_state(states, i):
    state = states + i * 4
    return tl.load(state), tl.load(state + 1), tl.load(state + 2)


@triton.jit(do_not_specialize=["turn"])
def search(
    logits, bits, largest, sampled, ranked, scales, top_k, top_p, wholes,
    counts, masses, states, turn, vocab, parts, count,
    PART: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr,
    BY_MASS: tl.constexpr,
):  # fmt: skip
    """Turn 0 to 7 of the search for the key of the last id that top-k keeps, or BY_MASS top-p:
    count and mass of this part's logits by their next digit. What one turn writes the next one
    reads: counts int64 (2, rows, parts, 16), masses alike, states int64 (2, rows, 4).
    """
    i = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(sampled + tl.load(ranked + i))
    before = (turn + 1) % 2 * count + i
    after = turn % 2 * count + i
    state = (tl.full((), 0, tl.int64), tl.full((), 0, tl.int64), tl.full((), 0, tl.int64))
    target = tl.minimum(tl.load(top_k + row), vocab.to(tl.int64))
    if turn > 0:
        if BY_MASS:
            target = tl.load(states + before * 4 + 3)
            if turn == 1:  # by now the total is known
                lane = tl.arange(0, WIDTH)
                at = (before * parts + lane)[:, None] * 16 + tl.arange(0, 16)[None, :]
                each = tl.load(masses + at, mask=(lane < parts)[:, None], other=0)
                whole = tl.load(wholes + i)
                whole = tl.where(whole < 0, tl.sum(each), whole)
                share = tl.load(top_p + row)
                target = tl.ceil(share * whole.to(tl.float64)).to(tl.int64)
                target = tl.where(share >= 1, 1 << 62, target)
        state = _load_state(states, before)
        state = _digit(counts, masses, state, before, target, parts, WIDTH, BY_MASS)
    if part == 0:
        tl.store(states + after * 4, state[0])
        tl.store(states + after * 4 + 1, state[1])
        tl.store(states + after * 4 + 2, state[2])
        tl.store(states + after * 4 + 3, target)
    best, scale = tl.load(largest + row), tl.load(scales + row)
    lane = tl.arange(0, 16)
    number = tl.zeros((CHUNK, 16), tl.int32)
    mass = tl.zeros((CHUNK, 16), tl.int64)
    for begin in range(part * PART, (part + 1) * PART, CHUNK):
        id = begin + tl.arange(0, CHUNK)
        logit = _load(logits, bits, row, id, vocab, BITS)
        weight = _weigh((logit - best) * scale)
        key = _key(logit)
        inside = (id < vocab) & ((key >> (32 - 4 * turn)) == state[0])
        digit = tl.where(inside, (key >> (28 - 4 * turn)) & 15, -1)
        mine = digit[:, None] == lane[None, :]
        number += mine.to(tl.int32)
        mass += tl.where(mine, weight[:, None], 0)
    number = tl.sum(number.to(tl.int64), 0)
    mass = tl.sum(mass, 0)
    out = (after * parts + part) * 16 + lane
    tl.store(counts + out, number)
    tl.store(masses + out, mass)


@triton.jit
def limit(
    largest, sampled, ranked, scales, wholes, counts, masses, states, keys, equals,
    vocab, parts, count, WIDTH: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """After a search's last turn: the smallest key that is kept, and how many of those equal to it;
    after top-k's also the mass of all it keeps.
    """
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(sampled + tl.load(ranked + i))
    last = count + i
    target = tl.load(states + last * 4 + 3)
    state = _digit(counts, masses, _load_state(states, last), last, target, parts, WIDTH, BY_MASS)
    key = state[0]
    power = (_logit(key) - tl.load(largest + row)) * tl.load(scales + row)
    weight = _weigh(power)
    if BY_MASS:
        # More than everything that there is, if rounding made it so, and without top-p.
        every = state[2] + weight * vocab < target
        missing = (target - state[2] + weight - 1) // tl.maximum(weight, 1)
        key = tl.where(every, 0, key)
        missing = tl.where(every, 0, missing)
        other = tl.load(keys + row)
        fewest = tl.minimum(missing, tl.load(equals + row))
        missing = tl.where(key > other, missing, tl.load(equals + row))
        tl.store(equals + row, tl.where(key == other, fewest, missing))
        tl.store(keys + row, tl.maximum(key, other))
    else:
        missing = target - state[1]
        tl.store(keys + row, key)
        tl.store(equals + row, missing)
        tl.store(wholes + i, state[2] + missing * weight)


@triton.jit
def _kept(logit, largest, scale, low):
    """Weights, 0 for what min-p drops."""
    power = (logit - largest) * scale
    return tl.where(power >= low, _weigh(power), 0)


@triton.jit
def weights(
    logits, bits, largest, sampled, scales, min_p, keys, masses, counts, vocab, parts,
    PART: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The mass of a part's ids above the smallest key, and how many are equal to it."""
    i = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = tl.load(sampled + i)
    id = part * PART + tl.arange(0, PART)
    logit = _load(logits, bits, row, id, vocab, BITS)
    weight = _kept(logit, tl.load(largest + row), tl.load(scales + row), tl.load(min_p + row))
    key, low = _key(logit), tl.load(keys + row)
    inside = id < vocab
    tl.store(masses + i * parts + part, tl.sum(tl.where(inside & (key > low), weight, 0), 0))
    tl.store(counts + i * parts + part, tl.sum((inside & (key == low)).to(tl.int64), 0))


@triton.jit
def pick(
    logits, bits, largest, sampled, scales, min_p, uniforms, keys, equals, masses, counts, ids,
    vocab, parts, PART: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """As sampling.pick: the first id at which the sum exceeds the share, in its part of the row."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(sampled + i)
    low, left = tl.load(keys + row), tl.load(equals + row)
    best, scale, least = tl.load(largest + row), tl.load(scales + row), tl.load(min_p + row)
    each = _kept(_logit(low), best, scale, least)
    part = tl.arange(0, WIDTH)
    inside = part < parts
    equal = tl.load(counts + i * parts + part, mask=inside, other=0)
    earlier = tl.cumsum(equal, 0) - equal
    mass = tl.load(masses + i * parts + part, mask=inside, other=0)
    mass += tl.minimum(tl.maximum(left - earlier, 0), equal) * each
    total = tl.sum(mass, 0)
    goal = (tl.load(uniforms + row) * total.to(tl.float64)).to(tl.int64)
    goal = tl.minimum(goal, total - 1)
    mine = tl.min(tl.where(inside & (tl.cumsum(mass, 0) > goal), part, parts - 1), 0)
    goal -= tl.sum(tl.where(part < mine, mass, 0), 0)
    left -= tl.sum(tl.where(part < mine, equal, 0), 0)
    id = mine * PART + tl.arange(0, PART)
    logit = _load(logits, bits, row, id, vocab, BITS)
    key = _key(logit)
    same = (key == low) & (id < vocab)
    rank = tl.cumsum(same.to(tl.int64), 0)
    weight = tl.where(key > low, _kept(logit, best, scale, least), 0)
    weight = tl.where(same & (rank <= left), each, weight)
    chosen = tl.min(tl.where(tl.cumsum(weight, 0) > goal, id, vocab - 1), 0)
    if tl.load(ids + row) >= 0:
        tl.store(ids + row, tl.minimum(chosen, vocab - 1).to(tl.int64))
