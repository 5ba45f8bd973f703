"""Dense matrices times vectors."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ossia.ops import _native
from ossia.ops.int8 import GROUP, Int8, quantize
from ossia.ops.weight import Weight
from tests.ops.cpu.common import DTYPES, FEW, RESULT_ERROR, native, normal, relative_error
from tests.ops.flat import reference


@FEW
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 200),
    tokens=st.integers(1, 16) | st.sampled_from([17, 31, 48, 300]),
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
    expected += (0 if b is None else b.double()) + (0 if r is None else r.double())
    found = form(native.linear, x, weight, b, residual=r)
    assert found.dtype is dtype
    sums = 1e-6 * x.double().norm() * weight.double().norm()  # in float32, large terms may cancel
    assert (found.double() - expected).norm() <= RESULT_ERROR[dtype] * expected.norm() + sums


@pytest.mark.parametrize("int8", [False, True])
@FEW
@given(
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    cols=st.integers(1, 300),
    tokens=st.sampled_from([1, 3, 7, 16, 20]),
    dtype=DTYPES,
    bias=st.booleans(),
)
def test_linears_are_the_bits_of_each_linear(form, rows, cols, tokens, dtype, bias, int8):
    x = normal(tokens, cols, dtype=dtype)
    weights: list[Weight] = [normal(n, cols, seed=i, dtype=dtype) for i, n in enumerate(rows)]
    if int8:
        weights = [quantize(normal(n, cols, seed=i)) for i, n in enumerate(rows)]
    biases = [normal(n, seed=i, dtype=dtype) if bias else None for i, n in enumerate(rows)]
    found = form(lambda: torch.cat(native.linears(x, weights, biases), dim=-1))
    each = [form(native.linear, x, w, b) for w, b in zip(weights, biases, strict=True)]
    assert torch.equal(found, torch.cat(each, dim=-1))


def test_a_wider_result_is_the_sums_before_they_are_rounded(form):
    x, weight = normal(3, 200, dtype=torch.bfloat16), normal(70, 200, seed=1, dtype=torch.bfloat16)
    sums = form(native.linear, x, weight, dtype=torch.float32)
    assert sums.dtype is torch.float32
    expected = x.double() @ weight.double().T
    assert (sums.double() - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(sums.bfloat16(), form(native.linear, x, weight))


def test_linears_of_unlike_weights_are_done_one_by_one(form):
    x, dense, scattered = normal(2, 64), normal(5, 64, seed=1), normal(3, 128, seed=2)[:, ::2]
    codes = quantize(normal(4, 64, seed=3))
    for pair in ((dense, scattered), (codes, dense), (dense, codes)):
        found = form(lambda pair=pair: torch.cat(native.linears(x, pair, [None, None]), dim=-1))
        wide = [weight.dense() if isinstance(weight, Int8) else weight for weight in pair]
        expected = x.double() @ torch.cat(wide).double().T
        assert (found.double() - expected).norm() <= 1e-6 * expected.norm()


def test_a_batch_gives_each_token_the_bits_it_gets_alone(form):
    x, weight = normal(11, 100), normal(37, 100, seed=1)
    for matrix in (weight, weight.T.contiguous().T):
        alone = torch.cat([form(native.linear, row[None], matrix) for row in x])
        assert torch.equal(form(native.linear, x, matrix), alone)


def test_what_the_kernels_do_not_do_the_reference_does():
    weight = normal(8, 6).requires_grad_()
    native.linear(normal(2, 6, seed=1), weight).sum().backward()
    assert weight.grad is not None
    half = native.linear(normal(2, 6).half(), normal(8, 6).half())
    assert half.dtype is torch.float16
    scattered = normal(8, 12)[:, ::2]
    x = normal(2, 6, seed=1)
    assert torch.equal(native.linear(x, scattered), reference.linear(x, scattered))


@FEW
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 3 * GROUP + 1),
    tokens=st.integers(1, 40),
    dtype=DTYPES,
    bias=st.booleans(),
    residual=st.booleans(),
)
@example(rows=33, cols=300, tokens=40, dtype=torch.bfloat16, bias=False, residual=False)
def test_int8(form, rows, cols, tokens, dtype, bias, residual):
    x, weight = normal(tokens, cols, dtype=dtype), quantize(normal(rows, cols, seed=1))
    b = normal(rows, seed=2, dtype=dtype) if bias else None
    added = normal(tokens, rows, seed=3, dtype=dtype) if residual else None
    dense = weight.dense().double()
    expected = x.double() @ dense.T
    for addend in (b, added):
        expected = expected if addend is None else expected + addend.double()
    found = form(native.linear, x, weight, b, residual=added)
    assert found.dtype is dtype
    # In float32, and of what words hold of bfloat16: large terms may cancel.
    sums = (1e-6 if dtype is torch.float32 else 3e-5) * x.double().norm() * dense.norm()
    assert (found.double() - expected).norm() <= RESULT_ERROR[dtype] * expected.norm() + sums
    if tokens <= 16:  # the kernels for few
        alone = torch.cat([form(native.linear, row[None], weight) for row in x])
        assert torch.equal(form(native.linear, x, weight), alone)
    if not bias and added is None:
        sums_alone = form(native.linear, x, weight, dtype=torch.float32)
        assert relative_error(sums_alone, x.double() @ dense.T) <= 3e-4


@FEW
@given(
    cols=st.integers(1, 3 * GROUP),
    tokens=st.sampled_from([1, 2, 9]),
    spread=st.sampled_from([0.0, 8.0, 30.0]),
    largest=st.sampled_from([1.0, 1e-30, 1e30, 1e-36, 1e-40]),
    dtype=DTYPES,
)
def test_int8_loses_of_an_activation_what_16_bits_do(form, cols, tokens, spread, largest, dtype):
    generator = torch.Generator().manual_seed(cols)
    exponents = torch.rand(tokens, cols, generator=generator) * -spread
    x = (normal(tokens, cols).clamp(-3, 3) / 3 * 2**exponents * largest).to(dtype)
    weight = quantize(normal(20, cols, seed=1))
    dense = weight.dense().double()
    found = form(native.linear, x, weight, dtype=torch.float32).double()
    error = (found - x.double() @ dense.T).abs()
    # Of sums in float32; and two scales' product below 2**-126 loses 2**-150 for each of the steps,
    # 2**22 at most, that a column counts.
    allowed = 1e-6 * (x.double().abs() @ dense.abs().T) + 2**-128 * cols
    for part, of_part in zip(x.double().split(GROUP, 1), dense.split(GROUP, 1), strict=True):
        # Half of what a word counts: 15 bits below the group's largest, 2**-126 at the least.
        step = (part.abs().amax(1) * 2**-14).clamp(min=2**-126)
        step *= 2**-14 if dtype is torch.float32 else 1.0  # a second word holds the remainder
        allowed += step.clamp(min=2**-126)[:, None] / 2 * of_part.abs().sum(1)
    assert (error <= allowed).all()


def test_the_largest_sums_that_int8_can_come_to_are_exact(form):
    for sign in (1.0, -1.0):
        x = torch.full((3, GROUP), sign * 255 * 2.0**7, dtype=torch.bfloat16)
        weight = Int8(torch.full((5, GROUP), -128, dtype=torch.int8), torch.ones(5, 1))
        found = form(native.linear, x, weight, dtype=torch.float32)
        assert torch.equal(found, torch.full((3, 5), -sign * 255 * 2.0**14 * GROUP))


@pytest.mark.parametrize("group", [32, 96, 160, 256])
def test_int8_in_groups_of_other_sizes(form, group):
    rows, cols = 45, 2 * group + 29
    x, weight = normal(16, cols, dtype=torch.bfloat16), normal(rows, cols, seed=1)
    codes = (weight * 32).round().clamp(-128, 127).to(torch.int8)
    scales = normal(rows, 3, seed=2).abs()
    matrix = _native.Matrix(codes, None, scales, group)
    expected = x.double() @ (codes * scales.repeat_interleave(group, 1)[:, :cols]).double().T
    for machine in form.machines:

        def linear(x, machine=machine):
            y = torch.empty(len(x), rows)
            machine.linear(x, matrix, y, None, False)
            return y

        found = linear(x)
        assert relative_error(found, expected) <= 3e-5
        for tokens in (1, 2, 3, 7):
            assert torch.equal(linear(x[:tokens]), found[:tokens])


@FEW
@given(
    spread=st.sampled_from([0.0, 3.0, 20.0]),
    largest=st.sampled_from([1.0, 1e-30, 1e30, 1e-36]),
    transposed=st.booleans(),
)
def test_words_lose_little_of_numbers_of_any_size(form, spread, largest, transposed):
    def numbers(*shape, seed):
        """With exponents from 0 down to -spread, relative to the largest."""
        exponents = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) * -spread
        return (normal(*shape, seed=seed).clamp(-3, 3) / 3 * 2**exponents).bfloat16()

    x, weight = numbers(40, 100, seed=1) * largest, numbers(30, 100, seed=2)
    matrix = weight.T.contiguous().T if transposed else weight
    found = form(native.linear, x, matrix).double()
    expected = x.double() @ weight.double().T
    sizes = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    # Half of 2**-12 of a block's largest, on both sides, and what rounding the result costs;
    # the smallest a word can be worth is 2**-126. What is taken for 0 is below that, in each
    # product.
    least = 2.0**-126 * (100 if form.flushes else 8)
    assert ((found - expected).abs() <= sizes * 2**-12 + expected.abs() * 2**-8 + least).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_many_tokens_each_gets_the_same_bits_among_any_others(form, dtype):
    x, weight = normal(300, 100, dtype=dtype), normal(70, 100, seed=1, dtype=dtype)
    everything = form(native.linear, x, weight)
    for first, last in ((0, 17), (5, 40), (31, 300)):
        assert torch.equal(form(native.linear, x[first:last], weight), everything[first:last])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_not_finite_spoils_its_token_or_its_row_only(form, dtype, bad, transposed):
    x, weight = normal(20, 70, dtype=dtype), normal(80, 70, seed=1, dtype=dtype)

    def linear(x, weight):
        return form(native.linear, x, weight.T.contiguous().T if transposed else weight)

    healthy = linear(x, weight)
    sick = x.clone()
    sick[3, 69] = bad
    found = linear(sick, weight)
    others = [t for t in range(20) if t != 3]
    assert not found[3].isfinite().any()
    assert torch.equal(found[others], healthy[others])
    sick = weight.clone()
    sick[71, 2] = bad
    found = linear(x, sick)
    others = [r for r in range(80) if r != 71]
    assert not found[:, 71].isfinite().any()
    assert torch.equal(found[:, others], healthy[:, others])
