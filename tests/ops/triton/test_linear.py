"""Products with dense and int8 matrices, and rows of an embedding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import REFERENCE, Norm
from ossia.ops.int8 import quantize
from ossia.ops.triton import TRITON
from tests.ops.triton.common import (
    DTYPES,
    FEW,
    RESULT_ERROR,
    Doubled,
    normal,
    relative_error,
    same_kinds,
)

COLS = st.sampled_from([1, 7, 64, 128, 300, 1024])
TOKENS = st.sampled_from([0, 1, 2, 4, 5, 16, 17])


def matrix(rows, cols, dtype, device, int8=False):
    weight = normal(rows, cols, seed=rows, dtype=dtype, device=device)
    return quantize(weight) if int8 else weight


def exact(x, weight, bias=None, residual=None):
    """In float64."""
    dense = weight.double() if isinstance(weight, torch.Tensor) else weight.dense().double()
    bias = None if bias is None else bias.double()
    out = torch.nn.functional.linear(x.double(), dense, bias)
    return out if residual is None else out + residual.double()


@FEW
@given(
    tokens=TOKENS,
    cols=COLS,
    rows=st.sampled_from([1, 5, 33]),
    biased=st.booleans(),
    added=st.booleans(),
    int8=st.booleans(),
    dtype=DTYPES,
)
def test_linear(device, tokens, cols, rows, biased, added, int8, dtype):
    x = normal(tokens, cols, dtype=dtype, device=device)
    weight = matrix(rows, cols, dtype, device, int8)
    bias = normal(rows, seed=1, dtype=dtype, device=device) if biased else None
    residual = normal(tokens, rows, seed=2, dtype=dtype, device=device) if added else None
    found = TRITON.linear(x, weight, bias, residual=residual)
    assert found.dtype is dtype
    assert found.shape == (tokens, rows)
    expected = exact(x, weight, bias, residual)
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype]


@FEW
@given(
    tokens=TOKENS,
    cols=COLS,
    rows=st.lists(st.sampled_from([1, 4, 35]), min_size=1, max_size=4),
    biased=st.booleans(),
    int8=st.booleans(),
    dtype=DTYPES,
)
def test_several_matrices_of_one_x(device, tokens, cols, rows, biased, int8, dtype):
    x = normal(2, tokens, cols, dtype=dtype, device=device)
    weights = [matrix(count, cols, dtype, device, int8) for count in rows]
    biases = [
        normal(count, seed=i, dtype=dtype, device=device) if biased else None
        for i, count in enumerate(rows)
    ]
    found = TRITON.linears(x, weights, biases)
    for out, weight, bias in zip(found, weights, biases, strict=True):
        assert out.shape == (2, tokens, weight.shape[0])
        assert relative_error(out, exact(x, weight, bias)) <= 2 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("tokens", [1, 9, 40])
@pytest.mark.parametrize("int8", [False, True])
def test_logits_are_not_rounded_to_the_type_of_x(device, tokens, int8):
    x = normal(tokens, 96, dtype=torch.bfloat16, device=device)
    weight = matrix(70, 96, torch.bfloat16, device, int8)
    found = TRITON.linear(x, weight, dtype=torch.float32)
    assert found.dtype is torch.float32
    assert relative_error(found, exact(x, weight)) <= 1e-6


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_numbers_at_the_edge_stay_in_their_row(device, tokens, number):
    x, weight = normal(tokens, 70, device=device), normal(9, 70, seed=1, device=device)
    x[-1, 3] = number
    weight[4, 69] = number
    found, expected = TRITON.linear(x, weight), REFERENCE.linear(x, weight)
    assert same_kinds(found, expected)


def test_a_sum_over_ranks_comes_before_the_residual(device):
    x, residual = normal(2, 40, device=device), normal(2, 9, seed=2, device=device)
    weight = matrix(9, 40, torch.float32, device)
    found = Doubled().linear(x, weight, residual=residual)
    assert relative_error(found, 2 * exact(x, weight) + residual) <= 1e-6


def test_a_transposed_matrix_is_laid_out_once(device):
    """As GPT-2's checkpoints hold them."""
    weight = normal(40, 9, seed=1, device=device).T
    placed = TRITON.place("layers.0.attention.q", weight)
    assert isinstance(placed, torch.Tensor)
    assert placed.is_contiguous()
    assert torch.equal(placed, weight)
    assert TRITON.place("layers.0.attention.q", placed) is placed
    x = normal(2, 40, device=device)
    assert relative_error(TRITON.linear(x, weight), exact(x, weight)) <= 1e-6


@FEW
@given(
    shape=st.sampled_from([(0,), (1,), (2, 3)]),
    size=st.sampled_from([1, 20, 1500]),
    added=st.booleans(),
    dtype=DTYPES,
)
def test_embed(device, shape, size, added, dtype):
    table = normal(11, size, dtype=dtype, device=device)
    ids = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1)).to(device)
    residual = normal(*shape, size, seed=3, dtype=dtype, device=device) if added else None
    found = TRITON.embed(ids, table, residual=residual)
    assert torch.equal(found, REFERENCE.embed(ids, table, residual=residual))


@FEW
@given(
    tokens=TOKENS,
    cols=COLS,
    rows=st.lists(st.sampled_from([1, 4, 35]), min_size=1, max_size=4),
    layer_norm=st.booleans(),
    before=st.booleans(),
    int8=st.booleans(),
    dtype=DTYPES,
)
def test_matrices_of_a_normalised_x(device, tokens, cols, rows, layer_norm, before, int8, dtype):
    x = normal(2, tokens, cols, dtype=dtype, device=device) * 5
    gain = normal(cols, seed=7, dtype=dtype, device=device)
    shift = normal(cols, seed=8, dtype=dtype, device=device) if layer_norm else None
    norm = Norm(gain, shift, 1e-5, before and not layer_norm)
    weights = [matrix(count, cols, dtype, device, int8) for count in rows]
    biases = [normal(count, seed=i, dtype=dtype, device=device) for i, count in enumerate(rows)]
    found = TRITON.normed_linears(x, norm, weights, biases)
    wide = Norm(gain.double(), None if shift is None else shift.double(), 1e-5)
    normalised = REFERENCE.norm(x.double(), wide)
    for out, weight, bias in zip(found, weights, biases, strict=True):
        assert out.dtype is dtype
        assert out.shape == (2, tokens, weight.shape[0])
        # What is not fused rounds x to its type.
        assert relative_error(out, exact(normalised, weight, bias)) <= 4 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 3e38, 0.0])
def test_a_norm_of_numbers_at_the_edge(device, number):
    """A mean of squares that overflows makes NaN, not zeros."""
    x, weight = normal(3, 20, device=device), normal(9, 20, seed=1, device=device)
    x[1, 7] = number
    x[2] = number
    norm = Norm(normal(20, seed=2, device=device), None, 1e-6)
    (found,), (expected,) = (
        ops.normed_linears(x, norm, [weight], [None]) for ops in (TRITON, REFERENCE)
    )
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert relative_error(found[0], expected[0]) <= 1e-6
