"""What stands between the two matrices of a feed-forward network."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ops.cpu.common import DTYPES, FEW, RESULT_ERROR, native, normal, relative_error
from tests.ops.flat import reference

COUNTS = st.sampled_from([1, 15, 16, 100, 4 << 16])


@FEW
@given(count=COUNTS, dtype=DTYPES)
def test_gelu(form, count, dtype):
    x = normal(count, dtype=dtype) * 3
    found = form(native.gelu, x)
    assert found.dtype is dtype
    assert relative_error(found, reference.gelu(x.double())) <= RESULT_ERROR[dtype]


@FEW
@given(count=COUNTS, dtype=DTYPES)
def test_swiglu(form, count, dtype):
    gate, up = normal(2, count, dtype=dtype) * 3, normal(2, count, seed=1, dtype=dtype)
    found = form(native.swiglu, gate, up)
    assert found.dtype is dtype
    expected = reference.swiglu(gate.double(), up.double())
    assert relative_error(found, expected) <= RESULT_ERROR[dtype]


@FEW
@given(count=COUNTS, dtype=DTYPES)
def test_clamped_swiglu(form, count, dtype):
    gate, up = normal(2, count, dtype=dtype) * 9, normal(2, count, seed=1, dtype=dtype) * 9
    found = form(native.clamped_swiglu, gate, up, limit=7.0, alpha=1.702)
    expected = reference.clamped_swiglu(gate.double(), up.double(), limit=7.0, alpha=1.702)
    assert relative_error(found, expected) <= RESULT_ERROR[dtype]


def test_every_size_of_number_has_its_value(form):
    """From those whose exponential overflows to those where it is 1, and what is no number."""
    x = torch.tensor([0.0, 1e-30, 1.0, 20.0, 87.0, 88.5, 1e4, 1e30, math.inf, math.nan])
    x = torch.cat([x, -x])
    for operation in ("gelu", "swiglu"):
        arguments = (x,) if operation == "gelu" else (x, torch.ones_like(x))
        found = form(getattr(native, operation), *arguments)
        torch.testing.assert_close(
            found, getattr(reference, operation)(*arguments), rtol=1e-6, atol=1e-6, equal_nan=True
        )


def test_broadcasting_is_left_to_the_reference(form):
    gate, up = normal(3, 8), normal(1, 8, seed=1)
    assert torch.equal(form(native.swiglu, gate, up), reference.swiglu(gate, up))
