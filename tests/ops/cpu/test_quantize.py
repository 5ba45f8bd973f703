"""Dense matrices to int8: the codes and scales of the definition in ops/int8.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import int8
from ossia.ops.int8 import GROUP
from tests.ops.cpu.common import DTYPES, FEW, cpu, normal


def codes_and_scales(weight):
    packed = cpu.CPU.quantize(weight)
    return torch.cat([packed.codes.flatten().float(), packed.scales.flatten()])


@FEW
@given(
    rows=st.integers(1, 70) | st.just(700),  # the last by several threads
    cols=st.integers(1, 3 * GROUP + 1),
    dtype=DTYPES,
    gap=st.integers(0, 3),
    transposed=st.booleans(),
    size=st.sampled_from([1.0, 1e-30, 1e-42, 1e35]),
)
def test_the_bits_of_the_definition(form, rows, cols, dtype, gap, transposed, size):
    if transposed:
        weight = normal(cols, rows + gap, dtype=dtype)[:, :rows].T * size
    else:
        weight = normal(rows, cols + gap, dtype=dtype)[:, :cols] * size
    weight[rows // 2] = 0
    packed = int8.quantize(weight)
    expected = torch.cat([packed.codes.flatten().float(), packed.scales.flatten()])
    assert torch.equal(form(codes_and_scales, weight), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [3, 1500])
def test_what_the_format_cannot_hold_is_refused(form, dtype, bad, rows):
    weight = normal(rows, 150, dtype=dtype)
    weight[rows - 1, 149] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        form(codes_and_scales, weight)


def test_what_the_kernel_does_not_do_the_definition_does():
    half, nothing = normal(3, 150).half(), torch.empty(0, 5)
    assert torch.equal(cpu.CPU.quantize(half).codes, int8.quantize(half).codes)
    assert cpu.CPU.quantize(nothing).shape == (0, 5)
