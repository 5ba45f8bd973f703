"""Products with frozen matrices and their transposes, and the activation between them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.mxfp4 import MXFP4, NAN_SCALE, unpack
from tests.ops.cpu.common import DTYPES, FEW, normal, packed, relative_error
from tests.ops.flat import reference

frozen = pytest.importorskip("ossia.ops.cpu.frozen")

COUNTS = st.lists(st.sampled_from([0, 1, 2, 17, 40, 300]), min_size=1, max_size=3).filter(sum)
ACTIVATIONS = st.sampled_from([SwiGLU(), ClampedSwiGLU(7.0, 1.702), ClampedSwiGLU(0.5, 1.0)])


def product(x: Tensor, counts: Tensor, weight: Tensor | MXFP4, turned: bool) -> Tensor:
    stack = frozen.stack_of(weight)
    assert stack is not None
    return frozen.grouped(x, counts, stack, turned=turned)


def expected(x: Tensor, counts: Tensor, weight: Tensor | MXFP4, turned: bool) -> Tensor:
    dense = (unpack(weight, torch.float32) if isinstance(weight, MXFP4) else weight).double()
    parts = x.double().split(counts.tolist())
    matrices = dense if turned else dense.mT
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


def error_of(dtype: torch.dtype) -> float:
    return 1e-6 if dtype is torch.float32 else 2**-8


@FEW
@given(
    counts=COUNTS,
    rows=st.integers(1, 3) | st.sampled_from([32, 70, 150]),
    cols=st.sampled_from([32, 96, 160, 288]),
    dtype=DTYPES,
    turned=st.booleans(),
)
def test_packed_matrices(form, counts, rows, cols, dtype, turned):
    weight, counts = packed(len(counts), rows, cols), torch.tensor(counts)
    x = normal(int(counts.sum()), rows if turned else cols, dtype=dtype)
    found = form(product, x, counts, weight, turned)
    assert found.dtype is dtype
    assert relative_error(found, expected(x, counts, weight, turned)) <= error_of(dtype)


@FEW
@given(
    counts=COUNTS,
    rows=st.integers(1, 3) | st.sampled_from([70, 150]),
    cols=st.integers(1, 3) | st.sampled_from([70, 150]),
    narrow=st.booleans(),
    dtype=DTYPES,
    turned=st.booleans(),
    transposed=st.booleans(),
)
def test_dense_matrices(form, counts, rows, cols, narrow, dtype, turned, transposed):
    narrow = narrow or dtype is torch.bfloat16
    weight = normal(len(counts), rows, cols, dtype=torch.bfloat16 if narrow else torch.float32)
    weight, counts = weight.mT.contiguous().mT if transposed else weight, torch.tensor(counts)
    x = normal(int(counts.sum()), rows if turned else cols, dtype=dtype)
    found = form(product, x, counts, weight, turned)
    assert relative_error(found, expected(x, counts, weight, turned)) <= error_of(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("scales", [(20, 230), (0, 4), (60, 180)])
def test_scales_that_lie_far_apart(form, dtype, turned, scales):
    """Of a turned matrix they meet within a block of columns. NaN stays in its block's outputs."""
    weight = packed(2, 64, 96)
    weight.scales.random_(*scales, generator=torch.Generator().manual_seed(7))
    weight.scales[1, 5, 1] = NAN_SCALE
    counts = torch.tensor([3, 20])
    x = normal(23, 64 if turned else 96, dtype=dtype) * (2.0**30 if scales[0] == 0 else 2.0**-30)
    found = form(product, x, counts, weight, turned).double()
    true = expected(x, counts, weight, turned)
    assert torch.equal(found.isnan(), true.isnan())
    assert (found - true).nan_to_num(0).norm() <= 2 * error_of(dtype) * true.nan_to_num(0).norm()
    assert true.isnan().sum() == 20 * (32 if turned else 1)


def test_a_bias_is_added_to_products_alone(form):
    weight, bias = packed(2, 64, 32), normal(2, 64, seed=1)
    counts = torch.tensor([2, 3])

    def biased(x: Tensor, turned: bool) -> Tensor:
        return frozen.grouped(x, counts, frozen.stack_of(weight, bias), turned=turned)

    x, slope = normal(5, 32), normal(5, 64)
    added = bias.repeat_interleave(counts, dim=0)
    torch.testing.assert_close(
        form(biased, x, False), form(product, x, counts, weight, False) + added
    )
    assert torch.equal(form(biased, slope, True), form(product, slope, counts, weight, True))


def test_counts_that_are_not_the_rows_are_refused(form):
    weight, x = packed(2, 64, 32), normal(5, 32)
    for counts in ([2, 2], [2, 4], [-1, 6], [1 << 62, 5 - (1 << 62)]):
        with pytest.raises(ValueError, match="counts: they do not add up"):
            form(product, x, torch.tensor(counts), weight, False)


@FEW
@given(tokens=st.integers(1, 5), units=st.sampled_from([32, 96]), dtype=DTYPES, kind=ACTIVATIONS)
def test_the_activation_and_its_gradient(form, tokens, units, dtype, kind):
    pairs, slope = (
        normal(tokens, 2 * units, dtype=dtype),
        normal(tokens, units, dtype=dtype, seed=1),
    )
    exact = pairs.double().requires_grad_()
    true = reference.backend.gated(exact[:, 0::2], exact[:, 1::2], kind)
    (gradient,) = torch.autograd.grad(true, exact, slope.double())
    error = error_of(dtype)
    assert relative_error(form(frozen.activate, pairs, kind), true.detach()) <= error
    assert relative_error(form(frozen.activation_gradient, pairs, slope, kind), gradient) <= error
