"""Dense matrices times few vectors."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import reference
from tests.ops.cpu.common import DTYPES, FEW, RESULT_ERROR, cpu, normal


@FEW
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 200),
    tokens=st.integers(1, 16),
    dtype=DTYPES,
    bias=st.booleans(),
    residual=st.booleans(),
    gap=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_linear(form, rows, cols, tokens, dtype, bias, residual, gap, transposed):
    rows *= 5 if transposed else 1  # whole blocks of rows, and single ones
    x = normal(tokens, cols, dtype=dtype)
    # Rows may lie apart, or columns if the matrix lies transposed.
    if transposed:
        weight = normal(cols, rows + gap, seed=1, dtype=dtype)[:, :rows].T
    else:
        weight = normal(rows, cols + gap, seed=1, dtype=dtype)[:, :cols]
    b = normal(rows, seed=2, dtype=dtype) if bias else None
    r = normal(tokens, rows, seed=3, dtype=dtype) if residual else None
    expected = x.double() @ weight.double().T
    expected += (b.double() if bias else 0) + (r.double() if residual else 0)
    found = form(cpu.linear, x, weight, b, residual=r)
    assert found.dtype is dtype
    sums = 1e-6 * x.double().norm() * weight.double().norm()  # in float32, large terms may cancel
    assert (found.double() - expected).norm() <= RESULT_ERROR[dtype] * expected.norm() + sums


@FEW
@given(
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    cols=st.integers(1, 100),
    tokens=st.sampled_from([1, 7, 16, 20]),
    dtype=DTYPES,
    bias=st.booleans(),
)
def test_linears_are_the_bits_of_each_linear(form, rows, cols, tokens, dtype, bias):
    x = normal(tokens, cols, dtype=dtype)
    weights = [normal(n, cols, seed=i, dtype=dtype) for i, n in enumerate(rows)]
    biases = [normal(n, seed=i, dtype=dtype) if bias else None for i, n in enumerate(rows)]
    found = form(lambda: torch.cat(cpu.linears(x, weights, biases), dim=-1))
    each = [form(cpu.linear, x, w, b) for w, b in zip(weights, biases, strict=True)]
    assert torch.equal(found, torch.cat(each, dim=-1))


def test_a_wider_result_is_the_sums_before_they_are_rounded(form):
    x, weight = normal(3, 200, dtype=torch.bfloat16), normal(70, 200, seed=1, dtype=torch.bfloat16)
    sums = form(cpu.linear, x, weight, dtype=torch.float32)
    assert sums.dtype is torch.float32
    expected = x.double() @ weight.double().T
    assert (sums.double() - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(sums.bfloat16(), form(cpu.linear, x, weight))


def test_linears_of_unlike_weights_are_done_one_by_one(form):
    x, dense, scattered = normal(2, 64), normal(5, 64, seed=1), normal(3, 128, seed=2)[:, ::2]
    found = form(lambda: torch.cat(cpu.linears(x, [dense, scattered], [None, None]), dim=-1))
    expected = x.double() @ torch.cat([dense, scattered]).double().T
    assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def test_a_batch_gives_each_token_the_bits_it_gets_alone(form):
    x, weight = normal(11, 100), normal(37, 100, seed=1)
    for matrix in (weight, weight.T.contiguous().T):
        alone = torch.cat([form(cpu.linear, row[None], matrix) for row in x])
        assert torch.equal(form(cpu.linear, x, matrix), alone)


def test_what_the_kernels_do_not_do_the_reference_does():
    weight = normal(8, 6).requires_grad_()
    cpu.linear(normal(2, 6, seed=1), weight).sum().backward()
    assert weight.grad is not None
    half = cpu.linear(normal(2, 6).half(), normal(8, 6).half())
    assert half.dtype is torch.float16
    scattered = normal(8, 12)[:, ::2]
    x = normal(2, 6, seed=1)
    assert torch.equal(cpu.linear(x, scattered), reference.linear(x, scattered))
