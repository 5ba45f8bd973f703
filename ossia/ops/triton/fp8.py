"""Numbers of 8 bits, e4m3, as pages hold them. Kernels see them as bytes.

Where a card has no instructions for them, integers and float16 do: moved by seven bits, a code
without its sign is the float16 that is 2**-8 of its value.
"""

# Triton's own types do not describe what kernels may do.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ossia.ops.triton.launch import INTERPRETED, card

# What is stored: a type of the language, or e4m3 that is converted by integers or by the card.
PLAIN, BITS, E4M3 = 0, 1, 2
_BITS, _E4M3 = tl.constexpr(BITS), tl.constexpr(E4M3)
_NAN = tl.constexpr(0x7F)
_LARGEST = tl.constexpr(448.0)


def lacks_fp8(device: torch.device) -> bool:
    """Whether kernels for a device cannot name the type: Ada was the first."""
    return card(device).architecture < 89 or (INTERPRETED and device.type == "cpu")


@triton.jit
def encoded(x, TYPE: tl.constexpr, FORM: tl.constexpr):
    """x as it is stored: as TYPE, or as `paged.to_fp8`."""
    if FORM == 0:
        return x.to(TYPE)
    else:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        size = tl.minimum(tl.abs(x), _LARGEST)
        whole = size.to(tl.int32, bitcast=True)
        # To nearest even: three bits of mantissa stay, and exponents are counted from 7.
        code = ((whole + 0x7FFFF + ((whole >> 20) & 1)) >> 20) - 960
        # Below 2**-6 all are multiples of 2**-9; the sum leaves no bits for fractions.
        small = ((size * 512.0 + 12582912.0) - 12582912.0).to(tl.int32)
        code = tl.where(size < 0.015625, small, code) | ((bits >> 24) & 0x80)
        return tl.where(tl.abs(x) < float("inf"), code, _NAN).to(TYPE)


@triton.jit
def decoded(x, TYPE: tl.constexpr, FORM: tl.constexpr):
    """What is stored as TYPE, which holds it exactly."""
    if FORM == _E4M3:
        return x.to(tl.float8e4nv, bitcast=True).to(TYPE)
    elif FORM == _BITS:
        code = x.to(tl.int32)
        size = code & 0x7F
        half = (size << 7) | ((code & 0x80) << 8)
        number = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where(size == _NAN, float("nan"), number).to(TYPE)
    else:
        return x.to(TYPE)
