"""int8 weights: the nearest codes, and what the operations make of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.ops.int8 import GROUP, Int8, quantize
from tests.ops.flat import reference


def matrix(rows: int, cols: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    sizes = torch.rand(rows, 1, generator=generator) * 100
    return (torch.randn(rows, cols, generator=generator) * sizes).to(dtype)


@settings(max_examples=50)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 3 * GROUP + 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    transposed=st.booleans(),
)
def test_each_weight_gets_the_nearest_code_of_its_group(rows, cols, dtype, transposed):
    weight = matrix(cols, rows, dtype).T if transposed else matrix(rows, cols, dtype)
    packed = quantize(weight)
    assert packed.shape == weight.shape
    for group, scale in enumerate(packed.scales.unbind(-1)):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        values, codes = weight[:, columns].double(), packed.codes[:, columns].double()
        largest = values.abs().amax(-1)
        torch.testing.assert_close(scale.double() * 127, largest, rtol=1e-6, atol=0)
        error = (values - codes * scale[:, None].double()).abs()
        assert (error <= scale[:, None] * 0.50001).all()
    expected = packed.codes.double() * packed.scales.double().repeat_interleave(GROUP, -1)[:, :cols]
    torch.testing.assert_close(packed.dense().double(), expected, rtol=1e-7, atol=0)


def test_zeros_and_the_smallest_numbers_survive():
    weight = torch.zeros(3, GROUP)
    weight[1] = 1e-44
    weight[2, 5] = 3e38
    found = quantize(weight).dense()
    assert found.isfinite().all()
    assert not found[0].any()
    assert found[1].abs().max() <= 2e-44
    torch.testing.assert_close(found[2], weight[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_the_format_cannot_hold_is_refused(bad):
    weight = matrix(3, 10)
    weight[2, 9] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_multiplies_by_what_the_codes_stand_for(dtype):
    weight, x = quantize(matrix(50, 300)), matrix(4, 300, dtype)
    bias = matrix(1, 50, dtype)[0]
    expected = x.double() @ weight.dense().double().T + bias.double()
    found = reference.linear(x, weight, bias)
    assert found.dtype is dtype
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= (1e-6 if dtype is torch.float32 else 2**-8)
    assert isinstance(weight[3:5], Int8)
    torch.testing.assert_close(reference.linear(x, weight[3:5], bias[3:5]), found[:, 3:5])
