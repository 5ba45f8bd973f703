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
    gap=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_linear(form, rows, cols, tokens, dtype, bias, gap, transposed):
    rows *= 5 if transposed else 1  # whole blocks of rows, and single ones
    x = normal(tokens, cols, dtype=dtype)
    # Rows may lie apart, or columns if the matrix lies transposed.
    if transposed:
        weight = normal(cols, rows + gap, seed=1, dtype=dtype)[:, :rows].T
    else:
        weight = normal(rows, cols + gap, seed=1, dtype=dtype)[:, :cols]
    b = normal(rows, seed=2, dtype=dtype) if bias else None
    expected = x.double() @ weight.double().T + (b.double() if bias else 0)
    found = form(cpu.linear, x, weight, b)
    assert found.dtype is dtype
    sums = 1e-6 * x.double().norm() * weight.double().norm()  # in float32, large terms may cancel
    assert (found.double() - expected).norm() <= RESULT_ERROR[dtype] * expected.norm() + sums


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
