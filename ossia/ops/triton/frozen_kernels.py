"""Kernels of experts whose matrices are frozen and packed in MXFP4: products with each matrix and
with its transpose, both from the bytes of the checkpoint, and the gated activation's gradient.

Rows and tiles are those of `training_experts_kernels`. A byte holds an even column and the odd one
behind it. Both become operands of the matrix unit in registers or shared memory, of one tile at a
time, as two matrices: no column changes its place, and no unpacked matrix is ever in the card's
memory.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from ossia.ops.triton.gates import gated, gated_slopes
from ossia.ops.triton.training_experts_kernels import own_tile, rows_from

_UNIT = tl.constexpr(2.0**126)  # by which decoded numbers are too small


def _assembly() -> str:
    """$0, $1: the numbers in the low halves of the four bytes of $4, in bfloat16; $2, $3: those in
    the high halves. A code's magnitude, where bfloat16 has the low bits of its exponent and the
    first of its mantissa, is 2**-126 times the number; also 0.5, which is subnormal there.
    """
    # Minus zero, added to a zero, keeps its sign.
    lines = [
        ".reg .b32 a, t, u, unit, zero;",
        "mov.b32 unit, 0x7E807E80; mov.b32 zero, 0x80008000;",
    ]
    for half, places in enumerate(("0x1404", "0x3424")):  # each byte into the upper one of a half
        lines.append(f"prmt.b32 a, $4, 0, {places};")
        for target, magnitude, sign in ((half, 2, 4), (2 + half, 6, 0)):
            lines.append(f"shr.b32 t, a, {magnitude}; and.b32 t, t, 0x01C001C0;")
            lines.append(f"shl.b32 u, a, {sign}; and.b32 u, u, 0x80008000; or.b32 t, t, u;")
            lines.append(f"fma.rn.bf16x2 ${target}, t, unit, zero;")
    return "\n".join(["{", *lines, "}"])


NUMBERS = tl.constexpr(_assembly())


@triton.jit
def _unpacked(packed, scale, ROWS: tl.constexpr, BLOCKS: tl.constexpr, WIDE: tl.constexpr):
    """The even and the odd columns of bytes (ROWS, 16 * BLOCKS) with scales (ROWS, BLOCKS), each
    (ROWS, 16 * BLOCKS), exact in bfloat16, or in float32 if WIDE. A scale may be any byte.
    """
    scale = scale.to(tl.int32)
    if WIDE:
        code = packed.to(tl.int32)
        even = (((code & 0x07) << 22) | ((code & 0x08) << 28)).to(tl.float32, bitcast=True) * _UNIT
        odd = (((code & 0x70) << 18) | ((code & 0x80) << 24)).to(tl.float32, bitcast=True) * _UNIT
        bits = tl.where(scale == 0, 0x00400000, scale << 23)
        power = tl.where(scale == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
    else:
        even, odd = tl.inline_asm_elementwise(
            NUMBERS, "=&r,=&r,=&r,=&r,r", [packed],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
        bits = tl.where(scale == 0, 0x0040, scale << 7)
        bits = tl.where(scale == 255, 0x7FC0, bits)
        power = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    power = tl.broadcast_to(power[:, :, None], (ROWS, BLOCKS, 16))
    power = tl.reshape(power, (ROWS, BLOCKS * 16))
    return even * power, odd * power


@triton.jit
def products(
    x, blocks, scales, bias, order, offsets, out, width, half,
    EXPERTS: tl.constexpr, LANES: tl.constexpr, CHOSEN: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr, GATHER: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out[row, n] = sum over k of x[row, k] * matrix[expert, n, k] + bias[expert, n].

    width: of n; half: bytes of a row of a matrix, half as many as columns. Of each 32 columns of x
    the 16 even ones come first. GATHER: x has a row per token.
    """
    expert, first, end = own_tile(offsets, EXPERTS, LANES, ROWS)
    if expert < EXPERTS:
        row, exists, source = rows_from(first, end, order, CHOSEN, ROWS, GATHER)
        col = tl.program_id(1) * COLS + tl.arange(0, COLS)
        inside = col < width
        matrix = expert.to(tl.int64) * width + tl.minimum(col, width - 1)
        group = tl.arange(0, 2)
        scaled = scales + matrix[:, None] * (half // 16) + group[None, :]
        # Too few scales for an asynchronous copy: the next step's are carried in registers.
        scale = tl.load(scaled, mask=(group < half // 16)[None, :], other=0)
        sums = tl.zeros((COLS, ROWS), tl.float32)
        for i in range(0, half, 32):
            byte = i + tl.arange(0, 32)
            mask = byte < half
            packed = tl.load(
                blocks + matrix[:, None] * half + byte[None, :], mask=mask[None, :], other=0
            )
            step = i // 16 + 2
            following = tl.load(scaled + step, mask=(step + group < half // 16)[None, :], other=0)
            left = x + source[None, :] * (2 * half) + (byte // 16 * 32 + byte % 16)[:, None]
            both = mask[:, None] & exists[None, :]
            low = tl.load(left, mask=both, other=0.0)
            high = tl.load(left + 16, mask=both, other=0.0)
            even, odd = _unpacked(packed, scale, COLS, 2, WIDE)
            scale = following
            sums = tl.dot(even, low.to(even.dtype), sums, input_precision=PRECISION)
            sums = tl.dot(odd, high.to(odd.dtype), sums, input_precision=PRECISION)
        sums = tl.trans(sums)
        if BIAS:
            more = tl.load(bias + expert.to(tl.int64) * width + col, mask=inside, other=0.0)
            sums += more.to(tl.float32)[None, :]
        place = row.to(tl.int64)[:, None] * width + col[None, :]
        mask = exists[:, None] & inside[None, :]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def products_turned(
    gradient, blocks, scales, order, offsets, out, depth, half,
    EXPERTS: tl.constexpr, LANES: tl.constexpr, CHOSEN: tl.constexpr, ROWS: tl.constexpr,
    BYTES: tl.constexpr, DEPTH: tl.constexpr, GATHER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out[row, k] = sum over n of gradient[row, n] * matrix[expert, n, k].

    depth: of n; half: as in `products`. GATHER: the gradient has a row per token.
    """
    expert, first, end = own_tile(offsets, EXPERTS, LANES, ROWS)
    if expert < EXPERTS:
        row, exists, source = rows_from(first, end, order, CHOSEN, ROWS, GATHER)
        byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
        group = tl.program_id(1) * (BYTES // 16) + tl.arange(0, BYTES // 16)
        inside, known = byte < half, group < half // 16
        first_row = expert.to(tl.int64) * depth + tl.arange(0, DEPTH)
        mask = tl.arange(0, DEPTH) < depth
        scale = tl.load(
            scales + first_row[:, None] * (half // 16) + group[None, :],
            mask=mask[:, None] & known[None, :], other=0,
        )  # fmt: skip
        evens = tl.zeros((ROWS, BYTES), tl.float32)
        odds = tl.zeros((ROWS, BYTES), tl.float32)
        for i in range(0, depth, DEPTH):
            n = i + tl.arange(0, DEPTH)
            mask = n < depth
            left = tl.load(
                gradient + source[:, None] * depth + n[None, :],
                mask=exists[:, None] & mask[None, :], other=0.0,
            )  # fmt: skip
            packed = tl.load(
                blocks + (first_row + i)[:, None] * half + byte[None, :],
                mask=mask[:, None] & inside[None, :], other=0,
            )  # fmt: skip
            following = tl.load(
                scales + (first_row + i + DEPTH)[:, None] * (half // 16) + group[None, :],
                mask=(n + DEPTH < depth)[:, None] & known[None, :], other=0,
            )  # fmt: skip
            even, odd = _unpacked(packed, scale, DEPTH, BYTES // 16, WIDE)
            scale = following
            left = left.to(even.dtype)
            evens = tl.dot(left, even, evens, input_precision=PRECISION)
            odds = tl.dot(left, odd, odds, input_precision=PRECISION)
        sums = tl.reshape(tl.join(evens, odds), (ROWS, 2 * BYTES))
        col = tl.program_id(1) * 2 * BYTES + tl.arange(0, 2 * BYTES)
        place = row.to(tl.int64)[:, None] * (2 * half) + col[None, :]
        mask = exists[:, None] & (col < 2 * half)[None, :]
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def activate_backward(
    slopes, both, order, weights, hidden, d_both, d_weights, inter, limit, alpha,
    CLAMPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """By the gradient `slopes` that hidden[row] = gated(both[row]) would have if each row's weight
    were 1: hidden again, the gradient of `both`, and that part of the weight's which is not the
    second bias's.
    """
    row = tl.program_id(0).to(tl.int64)
    choice = tl.load(order + row)
    weight = tl.load(weights + choice).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, inter, BLOCK):
        lane = i + tl.arange(0, BLOCK)
        mask = lane < inter
        pair = row * 2 * inter + 2 * lane
        gate = tl.load(both + pair, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(both + pair + 1, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(slopes + row * inter + lane, mask=mask, other=0.0).to(tl.float32)
        unit = gated(gate, up, limit, alpha, CLAMPED).to(hidden.dtype.element_ty)
        tl.store(hidden + row * inter + lane, unit, mask=mask)
        total += slope * unit.to(tl.float32)
        d_gate, d_up = gated_slopes(weight * slope, gate, up, limit, alpha, CLAMPED)
        tl.store(d_both + pair, d_gate.to(d_both.dtype.element_ty), mask=mask)
        tl.store(d_both + pair + 1, d_up.to(d_both.dtype.element_ty), mask=mask)
    tl.store(d_weights + choice, tl.sum(total, 0))
