"""MXFP4 is the OCP format: bit-exact unpacking of every code, and rounding by the specification."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops.mxfp4 import MXFP4, quantize, unpack

# The format's definition, from its bits: sign, two exponent bits with bias 1, one mantissa bit.


def element(nibble: int) -> float:
    sign, exponent, mantissa = nibble >> 3, (nibble >> 1) & 3, nibble & 1
    value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -value if sign else value


def every_code() -> MXFP4:
    """All 16 elements under all 255 scales: row s holds two blocks of scale s."""
    codes = torch.arange(16, dtype=torch.uint8)
    low_then_high = (codes | ((codes + 5) % 16) << 4).expand(255, 1, 16)
    return MXFP4(low_then_high.contiguous(), torch.arange(255, dtype=torch.uint8)[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_code_under_every_scale_unpacks_exactly(dtype):
    found = unpack(every_code(), dtype)
    expected = []
    for scale in range(255):
        row = []
        for code in range(16):
            row += [element(code), element((code + 5) % 16)]  # the low nibble comes first
        expected.append([value * 2.0 ** (scale - 127) for value in row])
    expected = torch.tensor(expected, dtype=torch.float64).to(dtype)
    assert torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())


def test_unpacking_agrees_with_transformers():
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 7, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 7, 2), generator=generator, dtype=torch.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(unpack(MXFP4(blocks, scales)), theirs.transpose(1, 2))


def test_a_scale_of_255_is_nan():
    packed = MXFP4(torch.zeros(1, 1, 16, dtype=torch.uint8), torch.full((1, 1), 255).byte())
    assert unpack(packed).isnan().all()


def reference_quantize(block: list[float]) -> list[float]:
    """One block by the specification, in double precision: the values it is rounded to."""
    largest = max(abs(value) for value in block)
    if largest == 0:
        return [0.0] * len(block)
    exponent = min(max(math.frexp(largest)[1] - 1 - 2, -127), 127)
    grid = sorted({element(code) for code in range(8)})
    rounded = []
    for value in block:
        magnitude = math.ldexp(abs(value), -exponent)
        distance = [abs(magnitude - point) for point in grid]
        nearest = [i for i, d in enumerate(distance) if d == min(distance)]
        code = next(i for i in nearest if len(nearest) == 1 or i % 2 == 0)
        rounded.append(math.copysign(math.ldexp(grid[code], exponent), value))
    return rounded


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)  # subnormals too
coarse = st.integers(-100, 100).map(lambda n: n / 8)  # hits every tie
blocks = st.lists(floats, min_size=32, max_size=32) | st.lists(coarse, min_size=32, max_size=32)


@given(blocks)
def test_quantizing_rounds_to_nearest_even_and_saturates(block):
    found = unpack(quantize(torch.tensor([block])), torch.float64)
    assert found.tolist() == [reference_quantize(block)]


def test_what_is_representable_survives():
    generator = torch.Generator().manual_seed(2)
    packed = MXFP4(
        torch.randint(0, 256, (2, 5, 3, 16), generator=generator, dtype=torch.uint8),
        torch.randint(2, 250, (2, 5, 3), generator=generator, dtype=torch.uint8),
    )
    values = unpack(packed, torch.float64)
    assert torch.equal(unpack(quantize(values.float()), torch.float64), values.float().double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_the_format_cannot_hold_is_refused(bad):
    weight = torch.zeros(2, 32)
    weight[1, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(weight)


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="multiple of 32, not 48"):
        quantize(torch.zeros(2, 48))


def test_codes_and_scales_that_do_not_belong_together_are_refused():
    blocks, scales = torch.zeros(2, 3, 16, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8)
    MXFP4(blocks, scales)
    for parts in ((blocks, scales[:, :2]), (blocks[..., :8], scales), (blocks.int(), scales)):
        with pytest.raises(ValueError, match="scales"):
            MXFP4(*parts)
