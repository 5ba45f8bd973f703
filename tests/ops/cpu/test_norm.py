"""The small operations between the large ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.cpu.common import DTYPES, FEW, native, normal, relative_error
from tests.ops.flat import reference


@FEW
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 100),
    dtype=DTYPES,
    before=st.booleans(),
    large=st.booleans(),
)
def test_rms_norm(form, rows, size, dtype, before, large):
    rows *= 2000 if large else 1  # beyond what one thread does
    x, weight = normal(rows, size, dtype=dtype) * 3, normal(size, seed=1, dtype=dtype)
    found = form(native.rms_norm, x, weight, 1e-5, round_before_weight=before)
    expected = reference.rms_norm(x, weight, 1e-5, round_before_weight=before)
    # A last bit of float32 can tip a rounding to bfloat16.
    assert relative_error(found, expected) <= (1e-6 if dtype is torch.float32 else 1e-3)


@FEW
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 100),
    dtype=DTYPES,
    large=st.booleans(),
)
def test_layer_norm(form, rows, size, dtype, large):
    rows *= 2000 if large else 1
    x = normal(rows, size, dtype=dtype) * 3 + 1
    weight, bias = normal(size, seed=1, dtype=dtype), normal(size, seed=2, dtype=dtype)
    found = form(native.layer_norm, x, weight, bias, 1e-5)
    expected = reference.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert found.dtype is dtype
    # Of two nearly equal numbers the difference is known to fewer digits.
    assert relative_error(found, expected) <= (1e-5 if dtype is torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [native, reference], ids=["native", "reference"])
def test_squares_that_overflow_give_no_number(form, backend, dtype):
    """One over the root of infinity would make every number 0, or the bias."""
    x = normal(5, 70, dtype=dtype)
    x[1] *= 1e19
    x[3, 69] = 3e30
    weight, bias = normal(70, seed=1, dtype=dtype), normal(70, seed=2, dtype=dtype)
    for found in (
        form(backend.rms_norm, x, weight, 1e-5, round_before_weight=False),
        form(backend.rms_norm, x, weight, 1e-5, round_before_weight=True),
        form(backend.layer_norm, x, weight, bias, 1e-5),
    ):
        assert found[[1, 3]].isnan().all()
        assert found[[0, 2, 4]].isfinite().all()


@FEW
@given(
    tokens=st.sampled_from([1, 3, 500]),
    heads=st.integers(1, 5),
    half=st.sampled_from([1, 5, 32]),
    dtype=DTYPES,
)
def test_rotate(form, tokens, heads, half, dtype):
    x, angles = normal(tokens, heads, 2 * half, dtype=dtype), normal(tokens, half, seed=1)
    found = form(native.rotate, x, angles.cos(), angles.sin())
    expected = reference.rotate(x, angles.cos(), angles.sin())
    assert relative_error(found, expected) <= (1e-6 if dtype is torch.float32 else 1e-3)
