"""The experts of a layer as one operation."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops.mxfp4 import MXFP4, NAN_SCALE, unpack
from tests.ops.cpu.common import (
    DTYPES,
    FEW,
    RESULT_ERROR,
    moe_error,
    native,
    normal,
    packed,
    relative_error,
)
from tests.ops.flat import reference

TOKENS = st.integers(1, 9) | st.sampled_from([17, 40, 300])
CLAMP = st.sampled_from([None, (7.0, 1.702)])


def choose(tokens: int, count: int, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights, experts = normal(tokens, count, seed=1).softmax(-1).topk(min(chosen, count))
    return experts, weights


def check(form, x, choices, gate_up, down, bias, clamp, residual, error) -> None:
    """The native sum, with biases or without, lies so close to the reference's in float64, measured
    by the terms of its outputs: where those are few they may cancel in all of them.
    """
    count, hidden, inter = down.shape
    biases = (
        (
            normal(count, 2 * inter, seed=2, dtype=x.dtype),
            normal(count, hidden, seed=3, dtype=x.dtype),
        )
        if bias
        else (None, None)
    )
    experts, weights = choices
    arguments = (experts, weights, gate_up, biases[0], down, biases[1])
    added = normal(*x.shape, seed=6, dtype=x.dtype) if residual else None
    found = form(native.moe, x, *arguments, clamp=clamp, residual=added, wide=True)
    exact: list[Any] = [_double(argument) for argument in (x, *arguments)]
    expected = reference.moe(*exact, clamp=clamp)
    expected = expected if added is None else expected + added.double()
    assert found.dtype is torch.float32
    assert (found - expected).norm() <= error * _terms(exact, clamp, added).norm()


def _double(argument):
    if isinstance(argument, MXFP4):
        return unpack(argument, torch.float32).double()
    wide = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if wide else argument


def _terms(exact: list, clamp, added) -> torch.Tensor:
    """For each output the norm of the terms that are summed to it: those of each expert's last
    product, biases and residual.
    """
    x, experts, weights, gate_up, gate_up_bias, down, down_bias = exact
    squares = torch.zeros_like(x) if added is None else added.double().square()
    for token, chosen in enumerate(experts.tolist()):
        for expert, weight in zip(chosen, weights[token], strict=True):
            hidden = gate_up[expert] @ x[token]
            hidden = hidden if gate_up_bias is None else hidden + gate_up_bias[expert]
            halves = hidden[0::2], hidden[1::2]
            limits = None if clamp is None else dict(zip(("limit", "alpha"), clamp, strict=True))
            units = (
                reference.clamped_swiglu(*halves, **limits) if limits else reference.swiglu(*halves)
            )
            squares[token] += (weight * down[expert] * units).square().sum(-1)
            if down_bias is not None:
                squares[token] += (weight * down_bias[expert]).square()
    return squares.sqrt()


@FEW
@given(
    tokens=TOKENS,
    count=st.integers(1, 6),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([32, 64, 96, 160, 288]),
    inter=st.sampled_from([32, 96, 128]),
    dtype=DTYPES,
    bias=st.booleans(),
    clamp=CLAMP,
    residual=st.booleans(),
)
def test_moe(form, tokens, count, chosen, hidden, inter, dtype, bias, clamp, residual):
    x, choices = normal(tokens, hidden, dtype=dtype), choose(tokens, count, chosen)
    gate_up, down = packed(count, 2 * inter, hidden, seed=4), packed(count, hidden, inter, seed=5)
    check(form, x, choices, gate_up, down, bias, clamp, residual, moe_error(form, dtype))


@FEW
@given(
    tokens=TOKENS,
    count=st.integers(1, 6),
    chosen=st.integers(1, 4),
    hidden=st.integers(1, 150),
    inter=st.integers(1, 80),
    dtype=DTYPES,
    bias=st.booleans(),
    clamp=CLAMP,
    residual=st.booleans(),
    transposed=st.booleans(),
)
def test_moe_of_dense_experts(
    form, tokens, count, chosen, hidden, inter, dtype, bias, clamp, residual, transposed
):
    x, choices = normal(tokens, hidden, dtype=dtype), choose(tokens, count, chosen)
    gate_up = normal(count, 2 * inter, hidden, seed=4, dtype=dtype) / hidden**0.5
    down = normal(count, hidden, inter, seed=5, dtype=dtype) / inter**0.5
    if transposed:  # as in gpt-oss's checkpoints
        gate_up, down = (w.mT.contiguous().mT for w in (gate_up, down))
    check(form, x, choices, gate_up, down, bias, clamp, residual, moe_error(form, dtype))


def test_experts_among_which_nobody_chose_some(form):
    experts = torch.full((50, 2), 3)
    experts[:, 1] = 1
    weights = torch.full((50, 2), 0.5)
    gate_up, down = packed(5, 64, 32, seed=4), packed(5, 32, 32, seed=5)
    check(form, normal(50, 32), (experts, weights), gate_up, down, True, None, False, 2e-6)


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_with_nan_or_infinity_spoils_itself_only(form, tokens, dtype):
    gate_up, down = packed(2, 64, 32, seed=4), packed(2, 32, 32, seed=5)
    x = normal(tokens, 32, dtype=dtype)
    experts, weights = torch.tensor([[0, 1]] * tokens), torch.full((tokens, 2), 0.5)

    def moe(x):
        return form(native.moe, x, experts, weights, gate_up, None, down, None)

    healthy = moe(x)
    for bad in (float("nan"), float("inf"), -float("inf")):
        sick = x.clone()
        sick[1, 5] = bad
        found = moe(sick)
        assert found[1].isnan().all()
        others = [t for t in range(tokens) if t != 1]
        assert torch.equal(found[others], healthy[others])


def test_a_router_trained_over_packed_experts_gets_its_gradient():
    gate_up, down = packed(2, 64, 32), packed(2, 32, 32, seed=1)
    weights = torch.full((1, 2), 0.5, requires_grad=True)
    native.moe(
        normal(1, 32), torch.tensor([[0, 1]]), weights, gate_up, None, down, None
    ).sum().backward()
    assert weights.grad is not None
    assert weights.grad.abs().min() > 0


def test_ids_and_weights_of_other_types_are_read_as_what_they_are(form):
    gate_up, down = packed(3, 64, 32), packed(3, 32, 32, seed=1)
    x, experts, weights = normal(2, 32), torch.tensor([[0, 2], [1, 2]]), torch.full((2, 2), 0.25)
    expected = form(native.moe, x, experts, weights, gate_up, None, down, None)
    found = form(native.moe, x, experts.int(), weights.double(), gate_up, None, down, None)
    assert torch.equal(found, expected)


def test_hostile_ids_are_refused_not_read(form):
    gate_up, down = packed(2, 64, 32), packed(2, 32, 32)
    x, weights = normal(1, 32), torch.ones(1, 1)
    for expert in (-1, 2, 1 << 40):
        with pytest.raises(IndexError, match="expert id"):
            form(native.moe, x, torch.tensor([[expert]]), weights, gate_up, None, down, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_sum_is_the_one_that_is_rounded(form, dtype):
    gate_up, down = packed(4, 64, 32), packed(4, 32, 32, seed=1)
    x, weights = normal(5, 32, dtype=dtype), normal(5, 2, seed=2).softmax(-1)
    experts = torch.tensor([[0, 2], [1, 2], [3, 1], [2, 0], [1, 3]])
    wide = form(native.moe, x, experts, weights, gate_up, None, down, None, wide=True)
    assert wide.dtype is torch.float32
    assert torch.equal(
        wide.to(dtype), form(native.moe, x, experts, weights, gate_up, None, down, None)
    )
    expected = reference.moe(x, experts, weights, gate_up, None, down, None, wide=True)
    assert expected.dtype is torch.float32
    assert relative_error(wide, expected) <= 2 * RESULT_ERROR[dtype]
    # Parts, added in the order of each token's choices, are the sum to the last bit.
    first, second = (
        form(native.moe, x, e[:, None], w[:, None], gate_up, None, down, None, wide=True)
        for e, w in zip(experts.unbind(1), weights.unbind(1), strict=True)
    )
    assert torch.equal(first + second, wide)


def test_the_smallest_scale_is_a_number_and_the_largest_byte_is_nan(form):
    gate_up, down = packed(2, 192, 576, seed=4), packed(2, 576, 96, seed=5)
    x, weights = normal(2, 576) * 2.0**120, torch.ones(2, 1)
    experts = torch.tensor([[0], [1]])
    tiny = MXFP4(gate_up.blocks, torch.zeros_like(gate_up.scales))
    arguments = (experts, weights, tiny, None, down, None)
    found = form(native.moe, x, *arguments)
    assert relative_error(found, reference.moe(x, *arguments)) <= 2e-6

    down.scales[1, 5, 2] = NAN_SCALE
    found = form(native.moe, x, *arguments)
    assert found.isnan().nonzero().tolist() == [[1, 5]]
    gate_up.scales[0, 7, 17] = NAN_SCALE
    found = form(native.moe, normal(2, 576), experts, weights, gate_up, None, down, None)
    assert found[0].isnan().all()
    assert found[1].isnan().nonzero().tolist() == [[5]]


@pytest.mark.parametrize("code", [0, 0x77])
def test_of_many_tokens_a_scale_of_nan_spoils_its_row_only(form, code):
    gate_up, down = packed(2, 64, 96, seed=4), packed(2, 96, 32, seed=5)
    down.scales[1, 5, 0], down.blocks[1, 5, 0] = NAN_SCALE, code
    x, experts = normal(40, 96, dtype=torch.bfloat16), torch.arange(40)[:, None] % 2
    found = form(native.moe, x, experts, torch.ones(40, 1), gate_up, None, down, None)
    assert found.isnan().nonzero().tolist() == [[token, 5] for token in range(1, 40, 2)]


@pytest.mark.parametrize("least", [0, 1, 60, 200, 251])
def test_of_many_tokens_weights_of_any_size_count(form, least):
    """Down to those that only subnormals can hold, beside blocks of zeros, whose scale is 0."""
    gate_up, down = packed(2, 128, 288, seed=4), packed(2, 288, 64, seed=5)
    gate_up.scales.copy_(gate_up.scales % 2 + least)
    gate_up.scales[:, ::5], gate_up.blocks[:, ::5] = 0, 0x80
    x = (normal(40, 288) * 2.0 ** min(max(127 - least, -110), 120)).bfloat16()
    experts, weights = torch.arange(80).view(40, 2) % 2, torch.full((40, 2), 0.5)
    found = form(native.moe, x, experts, weights, gate_up, None, down, None, wide=True)
    dense = (unpack(matrix, torch.float32) for matrix in (gate_up, down))
    first, last = (matrix.double() for matrix in dense)
    expected = reference.moe(x.double(), experts, weights.double(), first, None, last, None)
    assert relative_error(found, expected) <= moe_error(form, x.dtype)


@FEW
@given(
    tokens=st.integers(1, 70) | st.just(300),
    count=st.integers(1, 40),
    chosen=st.integers(1, 8),
    dtype=DTYPES,
    softmax_first=st.booleans(),
    renormalize=st.booleans(),
)
def test_route(form, tokens, count, chosen, dtype, softmax_first, renormalize):
    chosen = min(chosen, count)
    order = normal(tokens, count).argsort(-1)
    logits = (order.float() / 4 - 3).to(dtype)  # no two of a row are equal
    options = {"softmax_first": softmax_first, "renormalize": renormalize}
    experts = form(lambda: native.route(logits, chosen, **options)[0])
    weights = form(lambda: native.route(logits, chosen, **options)[1])
    expected = reference.route(logits, chosen, **options)
    assert torch.equal(experts, expected[0])
    torch.testing.assert_close(weights, expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_router_that_is_not_a_number_still_names_experts_that_there_are(form, bad):
    logits = torch.full((2, 9), bad)
    logits[1, 3] = 0
    experts = form(lambda: native.route(logits, 9, softmax_first=False, renormalize=False)[0])
    for row in experts.tolist():
        assert sorted(row) == list(range(9))
