"""How kernels decode `PairedMXFP4`: words for a product of vectors, bytes for a matrix unit.

On a card both are inline assembly, for which Triton has no operations: the two halves of a register
are decoded, multiplied and added at once. The interpreter computes the same in plain operations,
and sums in float32.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.ops.triton.launch import INTERPRETED

PLAIN = tl.constexpr(INTERPRETED)

# Decoded into float16 or bfloat16 a number is so many times its value.
HALF_SHIFT = 14  # 2**-14
BRAIN_SHIFT = 126  # 2**-126


def _dot_assembly() -> str:
    """$0 and $1: the sums of the first and of the second blocks of words $2 to $5; $6 to $21: x, of
    each word the four planes.
    """
    lines = [".reg .b32 t, u, v, p, q;", ".reg .b16 l, h;", ".reg .f32 a, b;"]

    def add(chain: str, plane: int, word: int) -> None:
        x = f"${6 + 4 * word + plane}"
        first = word == 0 and plane % 2
        operation = "mul.rn.f16x2" if first else "fma.rn.f16x2"
        lines.append(f"{operation} {chain}, t, {x}{'' if first else f', {chain}'};")

    for word in range(4):
        w = f"${2 + word}"
        lines.append(f"and.b32 t, {w}, 0x8E008E00;")
        add("p", 1, word)
        lines.append(f"shl.b32 u, {w}, 8; and.b32 t, u, 0x8E008E00;")
        add("p", 0, word)
        for plane, magnitude, sign in ((3, "shr.b32 u, {}, 3", 7), (2, "shl.b32 u, {}, 5", 15)):
            lines.append(f"{magnitude.format(w)}; and.b32 u, u, 0x0E000E00;")
            lines.append(f"shl.b32 v, {w}, {sign}; and.b32 v, v, 0x80008000; or.b32 t, u, v;")
            add("q", plane, word)
    for chain, result in (("p", "$0"), ("q", "$1")):
        lines.append(f"mov.b32 {{l, h}}, {chain}; cvt.f32.f16 a, l; cvt.f32.f16 b, h;")
        lines.append(f"add.f32 {result}, a, b;")
    return "\n".join(["{", *lines, "}"])


def _brain_assembly() -> str:
    """$0, $1: the first numbers of the four bytes of $4; $2, $3: their second numbers."""
    lines = [".reg .b32 a, t, u;"]
    for half, places in enumerate(("0x1404", "0x3424")):  # each byte into the upper one of a half
        lines.append(f"prmt.b32 a, $4, 0, {places};")
        lines.append("shr.b32 t, a, 3; and.b32 t, t, 0x01C001C0;")
        lines.append(f"and.b32 u, a, 0x80008000; or.b32 ${half}, t, u;")
        lines.append("shr.b32 t, a, 6; and.b32 t, t, 0x01C001C0;")
        lines.append(f"shl.b32 u, a, 7; and.b32 u, u, 0x80008000; or.b32 ${2 + half}, t, u;")
    return "\n".join(["{", *lines, "}"])


DOT = tl.constexpr(_dot_assembly())
BRAIN = tl.constexpr(_brain_assembly())


@triton.jit
def _half(bits):
    """The float16 in the low 16 bits of a word, as float32."""
    return (bits & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _product(code, x):
    """2**-14 * code * x, summed over both halves; code: 4 bits in each half of a word."""
    number = ((code & 0x00070007) << 9) | ((code & 0x00080008) << 12)
    return _half(number) * _half(x) + _half(number >> 16) * _half(x >> 16)


@triton.jit
def quarters(words, ROWS: tl.constexpr, LANES: tl.constexpr):
    """(ROWS, 4 * LANES) -> four of (ROWS, LANES), every fourth word in each."""
    even, odd = tl.split(tl.reshape(words, (ROWS, LANES, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def dot(words, x, ROWS: tl.constexpr, LANES: tl.constexpr):
    """For each lane's four words, which are half of a group: the sums of its products with x in the
    first block and in the second, float32 (ROWS, LANES) times 2**-14.

    words int32 (ROWS, 4 * LANES); x: four planes of the same shape, float16 in pairs.
    """
    if PLAIN:
        first = _product((words >> 1 & 0x00070007) | (words >> 4 & 0x00080008), x[0])
        first += _product((words >> 9 & 0x00070007) | (words >> 12 & 0x00080008), x[1])
        second = _product((words >> 4 & 0x00070007) | (words << 3 & 0x00080008), x[2])
        second += _product((words >> 12 & 0x00070007) | (words >> 5 & 0x00080008), x[3])
        first = tl.sum(tl.reshape(first, (ROWS, LANES, 4)), 2)
        return first, tl.sum(tl.reshape(second, (ROWS, LANES, 4)), 2)
    else:
        w = quarters(words, ROWS, LANES)
        a = quarters(x[0], ROWS, LANES)
        b = quarters(x[1], ROWS, LANES)
        c = quarters(x[2], ROWS, LANES)
        d = quarters(x[3], ROWS, LANES)
        return tl.inline_asm_elementwise(
            DOT,
            "=f,=f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [
                w[0], w[1], w[2], w[3],
                a[0], b[0], c[0], d[0], a[1], b[1], c[1], d[1],
                a[2], b[2], c[2], d[2], a[3], b[3], c[3], d[3],
            ],
            dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def scales_of(pair):
    """Two scales of a word of 16 bits, 1 to 254, as float32."""
    first = ((pair & 0xFF) << 23).to(tl.float32, bitcast=True)
    return first, ((pair >> 8 & 0xFF) << 23).to(tl.float32, bitcast=True)


@triton.jit
def tiles(packed, pair, WIDE: tl.constexpr):
    """The numbers of packed bytes (rows, 32) with pairs of scales (rows,): (rows, 32) of the first
    blocks and of the second ones, exact in bfloat16, or in float32 if WIDE.
    """
    pair = pair.to(tl.int32)
    if WIDE:
        word = packed.to(tl.int32)
        first = (((word & 0x0E) << 21) | ((word & 0x80) << 24)).to(tl.float32, bitcast=True)
        second = (((word & 0x70) << 18) | ((word & 0x01) << 31)).to(tl.float32, bitcast=True)
        low = (((pair & 0xFF) + 126) << 23).to(tl.float32, bitcast=True)
        high = (((pair >> 8 & 0xFF) + 126) << 23).to(tl.float32, bitcast=True)
    else:
        first, second = tl.inline_asm_elementwise(
            BRAIN, "=&r,=&r,=&r,=&r,r", [packed],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
        low = (((pair & 0xFF) + 126) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
        high = (((pair >> 8 & 0xFF) + 126) << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return first * low[:, None], second * high[:, None]


@triton.jit
def in_order(packed, ROWS: tl.constexpr):
    """Bytes (ROWS, 32) with byte i of columns i of both blocks."""
    return tl.reshape(tl.permute(tl.reshape(packed, (ROWS, 4, 4, 2)), (0, 2, 1, 3)), (ROWS, 32))


def wide(x: Tensor) -> bool:
    """Whether packed numbers are multiplied as float32, because x is not in bfloat16."""
    return INTERPRETED or x.dtype is not torch.bfloat16


def precision(x: Tensor, *, packed: bool) -> str:
    """That of products in float32. TensorFloat-32 holds float16 and packed numbers exactly."""
    return "tf32" if packed and x.dtype is torch.float16 else "ieee"
