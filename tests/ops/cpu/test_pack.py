"""Dense matrices to MXFP4 and back: the bits of the definition in ops/mxfp4.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ossia.ops.mxfp4 import MXFP4, quantize, unpack
from tests.ops.cpu.common import DTYPES, FEW, normal

frozen = pytest.importorskip("ossia.ops.cpu.frozen")

# Multiples of the smallest step that lie between two codes, and beyond the largest code.
TIES = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 5.5, 6, 6.5, 7, 7.5, -0.0])


def codes(weight: Tensor) -> Tensor:
    packed, _, _ = frozen.pack(weight)
    return torch.cat([packed.blocks.flatten(), packed.scales.flatten()])


def defined(weight: Tensor) -> Tensor:
    packed = quantize(weight)
    return torch.cat([packed.blocks.flatten(), packed.scales.flatten()])


@FEW
@given(
    rows=st.integers(1, 9) | st.just(3000),  # the last by several threads
    blocks=st.integers(1, 4),
    dtype=DTYPES,
    gap=st.integers(0, 3),
    size=st.sampled_from([1.0, 3e-3, 1e-30, 1e-38, 1e-42, 1e35]),
)
def test_the_bits_of_the_definition(form, rows, blocks, dtype, gap, size):
    weight = normal(rows, 32 * blocks + gap, dtype=dtype)[:, : 32 * blocks] * size
    weight[rows // 2] = 0
    assert torch.equal(form(codes, weight), defined(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exponent", [-149, -133, -127, -126, -2, 0, 99, 125])
def test_ties_zeros_and_subnormal_numbers(form, dtype, exponent):
    ties = torch.cat([TIES, -TIES, torch.zeros(4)])
    values = torch.cat([ties, 2 * ties, ties / 2]).view(3, 32).double() * 2.0**exponent
    weight = values.float().clamp(*(s * torch.finfo(dtype).max for s in (-1, 1))).to(dtype)
    assert torch.equal(form(codes, weight), defined(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [3, 3000])
def test_what_the_format_cannot_hold_is_refused(form, dtype, bad, rows):
    weight = normal(rows, 64, dtype=dtype)
    weight[rows - 1, 63] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        form(codes, weight)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_the_sums_of_squares(form, size):
    weight = normal(50, 96) * size
    sums = form(lambda w: torch.tensor(frozen.pack(w)[1:], dtype=torch.float64), weight)
    change = unpack(quantize(weight), torch.float32).double() - weight.double()
    true = torch.stack([change.square().sum(), weight.double().square().sum()])
    torch.testing.assert_close(sums, true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 3), (2, 128, 3), (40, 256, 3)])
def test_every_code_at_every_scale(form, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    blocks.view(-1)[:256] = torch.arange(256)
    scales = torch.arange(blocks.numel() // 16).remainder(256).view(shape).to(torch.uint8)
    weight = MXFP4(blocks, scales)
    found, true = form(frozen.unpack, weight, dtype), unpack(weight, dtype)
    assert torch.equal(found.isnan(), true.isnan())
    assert torch.equal(found.nan_to_num(), true.nan_to_num())
