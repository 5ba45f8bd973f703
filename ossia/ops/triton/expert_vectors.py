"""Packed experts for a few tokens: each token's products at the speed of memory.

A warp owns whole rows of the matrices and holds a row's bytes in registers. Products of blocks are
summed in float16 pairs, eight at a time, and the sums in float32. For this a vector is scaled by a
power of two, so that its largest number has all of float16's bits. Hidden units are scaled by the
activation's bound: of gpt-oss's, at most 56, those below 2**-34 are zeros.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.config import ClampedSwiGLU
from ossia.ops.triton.fp4 import dot, scales_of
from ossia.ops.triton.gates import gated
from ossia.ops.triton.launch import INTERPRETED, begin, begin_last, ceil_div, launch, power_of_2
from ossia.ops.triton.paired import PairedMXFP4
from ossia.ops.values import ExpertWeights, Routing

_CHUNK = 128  # words of a row that a warp reads at a time: 16 bytes for each of its threads
WORDS = 128  # words that a program packs
_WARPS = 32 if INTERPRETED else 4  # of a program: the interpreter is fast with few programs
_LARGEST = 1 << 15  # of numbers in float16, with room for their sums


class Packed(NamedTuple):
    """Vectors as the kernels multiply them: planes int32 (tokens, depth / 2), and float32 (tokens,)
    by which sums of products are multiplied.
    """

    planes: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, tokens: int, depth: int, device: torch.device) -> Packed:
        planes = torch.empty(tokens, depth // 2, dtype=torch.int32, device=device)
        return cls(planes, torch.empty(tokens, dtype=torch.float32, device=device))


@triton.jit
def power_of(numbers):
    """The power of two by which a vector's largest number becomes at least 2**13 and less than
    2**14.
    """
    largest = tl.max(tl.abs(numbers), 0).to(tl.int32, bitcast=True) >> 23
    return tl.minimum(tl.maximum(140 - largest, -115), 126)


@triton.jit
def _number(row, gain, inverse, at, mask, NORM: tl.constexpr):
    number = tl.load(row + at, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        number = number * tl.load(gain + at, mask=mask, other=0.0).to(tl.float32) * inverse
    return number


@triton.jit
def pack_words(
    row, gain, inverse, planes, scales, token, block, power, size,
    DEPTH: tl.constexpr, WORDS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """A block of words of a vector in float16, times 2**power; of its numbers times gain and
    `inverse` if NORM. Word (p, i) of the planes pairs the numbers that nibble p of the two halves
    of a matrix's word i multiplies.
    """
    factor = ((power + 127) << 23).to(tl.float32, bitcast=True)
    word = block * WORDS + tl.arange(0, WORDS)
    inside = word < DEPTH // 8
    first = word // 8 * 64 + word % 2 * 16 + word % 8 // 2 * 2
    for plane in tl.static_range(4):
        at = first + plane // 2 * 32 + plane % 2
        low = _number(row, gain, inverse, at, inside & (at < size), NORM)
        high = _number(row, gain, inverse, at + 8, inside & (at + 8 < size), NORM)
        low = (low * factor).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        high = (high * factor).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16
        tl.store(planes + (token * 4 + plane) * (DEPTH // 8) + word, low | high, mask=inside)
    if block == 0:  # of sums of products, together with 2**7; 2**14 alone may overflow
        tl.store(scales + token, ((134 - power) << 23).to(tl.float32, bitcast=True))


@triton.jit
def _pack(
    x, planes, scales, size,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    row = x + token * size
    column = tl.arange(0, WIDTH)
    power = power_of(tl.load(row + column, mask=column < size, other=0.0).to(tl.float32))
    pack_words(
        row, row, 1.0, planes, scales, token, tl.program_id(1), power, size, DEPTH, WORDS, False
    )


@triton.jit
def _load(pointer, index, SIZE: tl.constexpr, FULL: tl.constexpr):
    if FULL:
        return tl.load(pointer + index)
    else:
        return tl.load(pointer + index, mask=index < SIZE, other=0)


@triton.jit
def _stream(pointer, index, SIZE: tl.constexpr, FULL: tl.constexpr):
    """Weights, which nothing reads again soon."""
    if FULL:
        return tl.load(pointer + index, eviction_policy="evict_first")
    else:
        return tl.load(pointer + index, mask=index < SIZE, other=0, eviction_policy="evict_first")


@triton.jit
def _rows(pairs, scales, rows, WARPS: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr):
    """All words of one row for each warp, and the pairs of scales of its lanes."""
    words = ()
    factors = ()
    lane = tl.arange(0, CHUNK // 4)[None, :]
    index = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (WARPS, CHUNK))
    group = tl.broadcast_to(lane // 2, (WARPS, CHUNK // 4))
    for c in tl.static_range((DEPTH // 8 + CHUNK - 1) // CHUNK):
        row = pairs + rows[:, None] * (DEPTH // 8)
        full = (c + 1) * CHUNK <= DEPTH // 8
        words = words + (_stream(row, index + c * CHUNK, DEPTH // 8, full),)
        row = scales + rows[:, None] * (DEPTH // 64)
        factors = factors + (_stream(row, group + c * (CHUNK // 8), DEPTH // 64, full),)
    return words, factors


@triton.jit
def _products(
    words,
    factors,
    x,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """For each of ROWS rows of each warp its product with the warp's planes x, times 2**-14; words
    and factors: those of `_rows`, of one row after another.
    """
    CHUNKS: tl.constexpr = (DEPTH // 8 + CHUNK - 1) // CHUNK
    index = tl.broadcast_to(tl.arange(0, CHUNK)[None, :], (WARPS, CHUNK))
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (tl.zeros((WARPS, CHUNK // 4), tl.float32),)
    for c in tl.static_range(CHUNKS):
        planes = ()
        for p in tl.static_range(4):
            full = (c + 1) * CHUNK <= DEPTH // 8
            plane = _load(x + p * (DEPTH // 8), index + c * CHUNK, DEPTH // 8, full)
            planes = planes + (plane,)
        following = ()
        for r in tl.static_range(ROWS):
            first, second = dot(words[r * CHUNKS + c], planes, WARPS, CHUNK // 4)
            low, high = scales_of(factors[r * CHUNKS + c].to(tl.int32))
            following = following + (sums[r] + first * low + second * high,)
        sums = following
    products = ()
    for r in tl.static_range(ROWS):
        products = products + (tl.sum(sums[r], 1),)
    return products


@triton.jit
def _gate_up(
    x, x_scales, experts, pairs, scales, bias, hidden, limit, alpha, factor,
    INTER: tl.constexpr, DEPTH: tl.constexpr, OUT_DEPTH: tl.constexpr, CHOSEN: tl.constexpr,
    WARPS: tl.constexpr, UNITS: tl.constexpr, CHUNK: tl.constexpr,
    BIAS: tl.constexpr, CLAMPED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The hidden units of one choice, UNITS for each warp, as planes of float16 times `factor`."""
    begin_last(EARLY)
    choice = tl.program_id(0)  # the fastest, so that tokens of one expert read it at one time
    token = choice // CHOSEN
    expert = tl.load(experts + choice).to(tl.int64)
    unit = tl.program_id(1) * (WARPS * UNITS) + tl.arange(0, WARPS)
    words = ()
    factors = ()
    biases = ()
    for r in tl.static_range(2 * UNITS):  # a gate and its `up` for each unit
        row = 2 * tl.minimum(unit + r // 2 * WARPS, INTER - 1) + r % 2
        row = expert * (2 * INTER) + row
        w, f = _rows(pairs, scales, row, WARPS, DEPTH, CHUNK)
        words = words + w
        factors = factors + f
        if BIAS:
            biases = biases + (tl.load(bias + row).to(tl.float32),)
    tl.debug_barrier()  # or ptxas would move the loads to where they are used
    planes = x + token.to(tl.int64) * (DEPTH // 2)
    products = _products(words, factors, planes, 2 * UNITS, WARPS, DEPTH, CHUNK)
    scale = tl.load(x_scales + token)
    for q in tl.static_range(UNITS):
        gate = products[2 * q] * 128.0 * scale
        up = products[2 * q + 1] * 128.0 * scale
        if BIAS:
            gate += biases[2 * q]
            up += biases[2 * q + 1]
        number = (gated(gate, up, limit, alpha, CLAMPED) * factor).to(tl.float16)
        at = unit + q * WARPS
        column = at % 32
        plane = at % 64 // 32 * 2 + column % 2
        word = at // 64 * 8 + column % 8 // 2 * 2 + column // 16
        place = 2 * (plane * (OUT_DEPTH // 8) + word) + column % 16 // 8
        out = hidden + choice.to(tl.int64) * OUT_DEPTH
        tl.store(out + place, number, mask=at < INTER)


@triton.jit
def _down(
    hidden, experts, weights, pairs, scales, bias, residual, out, factor,
    SIZE: tl.constexpr, DEPTH: tl.constexpr, CHOSEN: tl.constexpr, SLOTS: tl.constexpr,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Some outputs of a token: a warp computes ROWS of them for one of its experts, and the warps
    of its SLOTS experts are summed in a fixed order.
    """
    WARPS: tl.constexpr = SLOTS * GROUPS
    token = tl.program_id(0).to(tl.int64)
    warp = tl.arange(0, WARPS)
    slot = warp % SLOTS
    used = slot < CHOSEN
    choice = token * CHOSEN + tl.minimum(slot, CHOSEN - 1)
    # `_gate_up` may still run, but lets nothing start before the choice is made. The nearest cache
    # may hold an older one.
    expert = tl.load(experts + choice, cache_modifier=".cg").to(tl.int64)
    first = tl.program_id(1) * (GROUPS * ROWS) + warp // SLOTS * ROWS
    words = ()
    factors = ()
    biases = ()
    for r in tl.static_range(ROWS):
        row = expert * SIZE + tl.minimum(first + r, SIZE - 1)
        w, f = _rows(pairs, scales, row, WARPS, DEPTH, CHUNK)
        words = words + w
        factors = factors + f
        if BIAS:
            biases = biases + (tl.load(bias + row).to(tl.float32),)
    tl.debug_barrier()
    begin(EARLY)
    weight = tl.load(weights + choice)
    planes = hidden + choice[:, None] * (DEPTH // 2)
    products = _products(words, factors, planes, ROWS, WARPS, DEPTH, CHUNK)
    group = tl.program_id(1) * (GROUPS * ROWS) + tl.arange(0, GROUPS) * ROWS
    for r in tl.static_range(ROWS):
        number = products[r] * factor
        if BIAS:
            number += biases[r]
        number = tl.where(used, number * weight, 0.0)
        number = tl.sum(tl.reshape(number, (GROUPS, SLOTS)), 1)
        at = group + r
        place = token * SIZE + at
        if RESIDUAL:
            number += tl.load(residual + place, mask=at < SIZE, other=0.0).to(tl.float32)
        tl.store(out + place, number.to(out.dtype.element_ty), mask=at < SIZE)


def suits(x: Tensor, chosen: int, experts: ExpertWeights) -> bool:
    """Whether these kernels compute such experts: x in 16 bits, hidden units that are bounded."""
    activation = experts.activation
    return (
        x.element_size() == 2
        and isinstance(activation, ClampedSwiGLU)
        and 0 < activation.limit <= 64
        and chosen <= 16
    )


def moe(
    x: Tensor, routing: Routing, experts: ExpertWeights, residual: Tensor | None, out: Tensor
) -> None:
    """Backend.moe of a few tokens x (tokens, hidden) into `out`, the residual added."""
    assert isinstance(experts.gate_up, PairedMXFP4)
    (tokens, size), depth = x.shape, experts.gate_up.depth
    packed = Packed.empty(tokens, depth, x.device)
    launch(
        _pack, (tokens, ceil_div(depth // 8, WORDS)), x, *packed, size,
        DEPTH=depth, WIDTH=power_of_2(size), WORDS=WORDS, num_warps=4,
    )  # fmt: skip
    packed_moe(packed, routing, experts, residual, out)


def packed_moe(
    x: Packed, routing: Routing, experts: ExpertWeights, residual: Tensor | None, out: Tensor
) -> None:
    """`moe` of packed vectors."""
    gate_up, down, activation = experts.gate_up, experts.down, experts.activation
    assert isinstance(gate_up, PairedMXFP4)
    assert isinstance(down, PairedMXFP4)
    assert isinstance(activation, ClampedSwiGLU)
    (tokens, size), device = out.shape, out.device
    chosen, inter = routing.experts.shape[1], down.cols
    # What fills up the last group must be finite.
    make = torch.empty if down.depth == inter else torch.zeros
    hidden = make(tokens * chosen, down.depth, dtype=torch.float16, device=device)
    factor = _hidden_factor(activation)
    warps, units = _WARPS, 2
    launch(
        _gate_up, (tokens * chosen, ceil_div(inter, warps * units)),
        *x, routing.experts, *_matrix(gate_up, experts.gate_up_bias), hidden,
        activation.limit, activation.alpha, factor,
        INTER=inter, DEPTH=gate_up.depth, OUT_DEPTH=down.depth, CHOSEN=chosen, WARPS=warps,
        UNITS=units, CHUNK=_CHUNK, BIAS=experts.gate_up_bias is not None, CLAMPED=True,
        num_warps=warps,
    )  # fmt: skip
    slots, rows = power_of_2(chosen), 4
    groups = max(1, _WARPS // slots)
    launch(
        _down, (tokens, ceil_div(size, groups * rows)),
        hidden.view(torch.int32), routing.experts, routing.weights,
        *_matrix(down, experts.down_bias), out if residual is None else residual, out,
        2.0**14 / factor,
        SIZE=size, DEPTH=down.depth, CHOSEN=chosen, SLOTS=slots, GROUPS=groups, ROWS=rows,
        CHUNK=_CHUNK, BIAS=experts.down_bias is not None, RESIDUAL=residual is not None,
        num_warps=slots * groups,
    )  # fmt: skip


def _matrix(stack: PairedMXFP4, bias: Tensor | None) -> tuple[Any, ...]:
    """A stack and its bias as the kernels read them: in words, and scales in pairs."""
    words = stack.pairs.view(torch.int32)
    return words, stack.scales.view(torch.int16), words if bias is None else bias


def _hidden_factor(activation: ClampedSwiGLU) -> float:
    """A power of two by which hidden units, at most limit * (limit + 1), fit into float16."""
    factor = 1.0
    while 2 * factor * activation.limit * (activation.limit + 1) <= _LARGEST:
        factor *= 2
    return factor
