"""Norms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import REFERENCE, Norm
from ossia.ops.triton import TRITON
from tests.ops.triton.common import DTYPES, FEW, RESULT_ERROR, normal, relative_error, same_kinds


@FEW
@given(
    rows=st.integers(0, 3),
    size=st.sampled_from([1, 2, 7, 64, 100, 257]),
    before=st.booleans(),
    dtype=DTYPES,
)
def test_rms_norm(device, rows, size, before, dtype):
    x = normal(rows, 2, size, dtype=dtype, device=device) * 3
    weight = normal(size, seed=1, dtype=dtype, device=device)
    found = TRITON.rms_norm(x, weight, 1e-5, round_before_weight=before)
    expected = REFERENCE.rms_norm(x.double(), weight.double(), 1e-5, round_before_weight=False)
    assert found.dtype is dtype
    assert found.shape == x.shape
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype]


@FEW
@given(
    heads=st.tuples(st.integers(0, 3), st.integers(1, 3)),
    size=st.sampled_from([1, 7, 64, 100]),
    before=st.booleans(),
    dtype=DTYPES,
)
def test_two_rms_norms_at_once(device, heads, size, before, dtype):
    """Queries and keys, of which one may be none, as slices of one product."""
    both = normal(2, sum(heads), size, dtype=dtype, device=device) * 3
    xs = both.split(heads, 1)
    weights = [normal(size, seed=seed, dtype=dtype, device=device) for seed in (1, 2)]
    found = TRITON.norms(xs, [Norm(weight, None, 1e-5, before) for weight in weights])
    for x, weight, one in zip(xs, weights, found, strict=True):
        expected = REFERENCE.rms_norm(x.double(), weight.double(), 1e-5, round_before_weight=False)
        assert one.dtype is dtype
        assert one.shape == x.shape
        assert relative_error(one, expected) <= 2 * RESULT_ERROR[dtype]


def test_norms_that_differ_in_more_than_weights_keep_their_own(device):
    xs = [normal(3, size, seed=size, device=device) for size in (20, 20)]
    weights = [normal(20, seed=seed, device=device) for seed in (1, 2)]
    norms = Norm(weights[0], None, 1e-6), Norm(weights[1], None, 1e-2)
    centred = Norm(weights[0], weights[1], 1e-6)
    for pair in (norms, (centred, norms[0]), (norms[0], Norm(weights[1], None, 1e-6, True))):
        expected = [REFERENCE.norm(x, norm) for x, norm in zip(xs, pair, strict=True)]
        for one, other in zip(TRITON.norms(xs, pair), expected, strict=True):
            assert relative_error(one, other.double()) <= 1e-6


@FEW
@given(rows=st.integers(0, 3), size=st.sampled_from([2, 7, 64, 100, 257]), dtype=DTYPES)
def test_layer_norm(device, rows, size, dtype):
    x = normal(rows, 2, size, dtype=dtype, device=device) * 3 + 5
    weight, bias = (normal(size, seed=seed, dtype=dtype, device=device) for seed in (1, 2))
    found = TRITON.layer_norm(x, weight, bias, 1e-5)
    expected = REFERENCE.layer_norm(x.double(), weight.double(), bias.double(), 1e-5)
    assert found.dtype is dtype
    assert found.shape == x.shape
    assert relative_error(found, expected) <= 4 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("before", [False, True])
def test_x_is_rounded_before_the_weight_or_after(device, before):
    """Float16 has no bits to spare, so the other order would show in a quarter of the numbers."""
    x, weight = (normal(8, 100, seed=s, dtype=torch.float16, device=device) for s in (0, 1))
    found = TRITON.rms_norm(x, weight[0], 1e-6, round_before_weight=before)
    expected = REFERENCE.rms_norm(x, weight[0], 1e-6, round_before_weight=before)
    assert (found != expected).double().mean() < 0.01


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 3e38, 0.0])
def test_numbers_at_the_edge(device, number):
    x = normal(3, 20, device=device)
    x[1, 7] = number
    x[2] = number
    weight, bias = normal(20, seed=1, device=device), normal(20, seed=2, device=device)
    found = TRITON.rms_norm(x, weight, 1e-6, round_before_weight=False)
    expected = REFERENCE.rms_norm(x, weight, 1e-6, round_before_weight=False)
    assert same_kinds(found, expected)
    x[2] = number if abs(number) != 3e38 else 0  # whose sum overflows in one order only
    found = TRITON.layer_norm(x, weight, bias, 1e-6)
    assert same_kinds(found, REFERENCE.layer_norm(x, weight, bias, 1e-6))


def test_gradients_are_left_to_the_reference(device):
    x = normal(3, 20, device=device).requires_grad_()
    weight = normal(20, seed=1, device=device)
    gradients = [
        torch.autograd.grad(ops.rms_norm(x, weight, 1e-6, round_before_weight=True).sum(), x)[0]
        for ops in (TRITON, REFERENCE)
    ]
    assert torch.equal(*gradients)
