"""Norm, router and experts of a few tokens together."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.config import ClampedSwiGLU, Router, SwiGLU
from ossia.ops import REFERENCE, ExpertWeights, Norm, RouterWeights
from ossia.ops.triton import TRITON, expert_router
from ossia.ops.triton.paired import PairedMXFP4
from tests.ops.triton.common import (
    DTYPES,
    FEW,
    RESULT_ERROR,
    Doubled,
    normal,
    packed,
    relative_error,
    same_kinds,
)
from tests.ops.triton.test_experts import biases, exact, layer, placed


def inputs(tokens, hidden, count, chosen, dtype, device, bias=True, kind=Router.TOP_K_THEN_SOFTMAX):
    x = normal(tokens, hidden, dtype=dtype, device=device) * 3
    norm = Norm(normal(hidden, seed=1, dtype=dtype, device=device), None, 1e-5)
    weight = normal(count, hidden, seed=2, dtype=dtype, device=device) / hidden**0.5
    offset = normal(count, seed=3, dtype=dtype, device=device) if bias else None
    return x, norm, RouterWeights(weight, offset, chosen, kind)


def exact_logits(x, norm: Norm, router: RouterWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """The normalised x and its logits, in float64."""
    assert isinstance(router.weight, torch.Tensor)
    normalised = REFERENCE.norm(x.double(), norm._replace(weight=norm.weight.double()))
    bias = None if router.bias is None else router.bias.double()
    return normalised, REFERENCE.linear(normalised, router.weight.double(), bias)


@FEW
@given(
    tokens=st.integers(1, 4),
    hidden=st.sampled_from([32, 64, 96, 300]),
    count=st.sampled_from([1, 3, 8, 33]),
    chosen=st.integers(1, 4),
    dtype=DTYPES,
    bias=st.booleans(),
    kind=st.sampled_from(Router),
)
def test_the_best_experts_are_chosen(device, tokens, hidden, count, chosen, dtype, bias, kind):
    chosen = min(chosen, count)
    x, norm, router = inputs(tokens, hidden, count, chosen, dtype, device, bias, kind)
    depth = -(-hidden // 64) * 64
    for _ in range(2):  # the counters are at zero again
        found, _ = expert_router.route(x, norm, router, depth)
    _, logits = exact_logits(x, norm, router)
    slack = 2 * RESULT_ERROR[dtype] * float(logits.abs().max())
    best = logits.gather(1, found.experts)
    assert all(len(set(row)) == chosen for row in found.experts.tolist())
    assert (best >= logits.topk(chosen).values - slack).all()
    weights = best.softmax(-1)
    if kind is not Router.TOP_K_THEN_SOFTMAX:
        weights = logits.softmax(-1).gather(1, found.experts)
        if kind is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED:
            weights = weights / weights.sum(1, keepdim=True)
    torch.testing.assert_close(found.weights.double(), weights, rtol=4 * slack, atol=1e-7)


@FEW
@given(
    tokens=st.sampled_from([0, 1, 2, 5, 9]),
    hidden=st.sampled_from([32, 64, 160]),
    inter=st.sampled_from([32, 128]),
    dtype=DTYPES,
    bias=st.booleans(),
    activation=st.sampled_from([ClampedSwiGLU(), SwiGLU()]),
    added=st.booleans(),
)
def test_experts_of_a_normalised_x(device, tokens, hidden, inter, dtype, bias, activation, added):
    """All four experts are chosen, so that no rounding of logits changes which."""
    x, norm, router = inputs(tokens, hidden, 4, 4, dtype, device)
    first, last = biases(bias, 4, hidden, inter, dtype, device)
    experts = ExpertWeights(
        packed(4, 2 * inter, hidden, seed=4, device=device), first,
        packed(4, hidden, inter, seed=5, device=device), last, activation,
    )  # fmt: skip
    residual = normal(tokens, hidden, seed=6, dtype=dtype, device=device) if added else None
    found = TRITON.normed_moe(x, norm, router, placed(experts), residual=residual)
    assert found.dtype is dtype
    assert found.shape == (tokens, hidden)
    normalised, logits = exact_logits(x, norm, router)
    where = REFERENCE.route(logits, 4, router.kind)
    expected = exact(normalised, where, experts, residual)
    # Logits, x where nothing is fused, hidden units and outputs are rounded to x's type.
    assert relative_error(found, expected) <= 6 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_token_with_nan_or_infinity_spoils_itself_only(device, bad):
    x, norm, router = inputs(3, 64, 4, 2, torch.bfloat16, device)
    experts = layer(device)
    healthy = TRITON.normed_moe(x, norm, router, experts)
    x[1, 5] = bad
    found = TRITON.normed_moe(x, norm, router, experts)
    assert same_kinds(found, REFERENCE.normed_moe(x, norm, router, stored(experts)))
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], healthy[[0, 2]])


def stored(experts: ExpertWeights) -> ExpertWeights:
    """As a checkpoint holds them."""
    gate_up, down = experts.gate_up, experts.down
    assert isinstance(gate_up, PairedMXFP4)
    assert isinstance(down, PairedMXFP4)
    return replace(experts, gate_up=gate_up.stored(), down=down.stored())


def test_equal_logits_choose_the_first(device):
    x, norm, router = inputs(2, 64, 8, 3, torch.bfloat16, device)
    router = router._replace(weight=torch.zeros(8, 64, dtype=x.dtype, device=device), bias=None)
    found, _ = expert_router.route(x, norm, router, 64)
    assert found.experts.tolist() == [[0, 1, 2]] * 2
    assert relative_error(found.weights, torch.full((2, 3), 1 / 3)) <= 1e-6


def test_the_residual_is_added_after_the_sum_over_ranks(device):
    x, norm, router = inputs(2, 64, 4, 4, torch.bfloat16, device)
    experts = layer(device)
    alone = TRITON.normed_moe(x, norm, router, experts).double()
    found = Doubled().normed_moe(x, norm, router, experts, residual=x)
    assert relative_error(found, x.double() + 2 * alone) <= 4 * RESULT_ERROR[torch.bfloat16]
