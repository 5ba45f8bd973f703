"""Routing, and the experts of a layer as one operation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import REFERENCE, ExpertWeights, Routing
from ossia.ops.mxfp4 import NAN_SCALE
from ossia.ops.triton import TRITON, expert_matrices
from ossia.ops.triton.expert_matrices import blocks_of
from ossia.ops.triton.launch import CARDS
from ossia.ops.triton.paired import PairedMXFP4
from ossia.ops.triton.routing import sort
from ossia.ops.weight import Matrix
from tests.ops.flat import reference
from tests.ops.triton.common import (
    DTYPES,
    FEW,
    RESULT_ERROR,
    Doubled,
    normal,
    packed,
    relative_error,
    same_kinds,
    triton,
)

# Tokens for products of vectors, and for blocks of 16, 32, 64 and 128 rows.
TOKENS = st.sampled_from([1, 2, 9, 30, 70, 150])
ACTIVATIONS = st.sampled_from([SwiGLU(), ClampedSwiGLU(), ClampedSwiGLU(2.0, 1.0)])


def routing(tokens: int, count: int, chosen: int, device: torch.device) -> Routing:
    weights, experts = normal(tokens, count, seed=1).softmax(-1).topk(chosen)
    return Routing(experts.to(device), weights.to(device))


def placed(experts: ExpertWeights) -> ExpertWeights:
    """As a model holds them after `place`."""
    gate_up, down = (TRITON.place("experts", weight) for weight in (experts.gate_up, experts.down))
    return ExpertWeights(gate_up, experts.gate_up_bias, down, experts.down_bias, experts.activation)


def exact(x, where, experts, residual=None) -> torch.Tensor:
    """The definition, in float64."""

    def wide(weight: Matrix | None):
        if weight is None:
            return None
        return (weight if isinstance(weight, torch.Tensor) else weight.dense()).double()

    parts = (experts.gate_up, experts.gate_up_bias, experts.down, experts.down_bias)
    return REFERENCE.moe(
        x.double(),
        Routing(where.experts, where.weights.double()),
        ExpertWeights(*map(wide, parts), experts.activation),  # type: ignore[arg-type]
        residual=wide(residual),
    )


def biases(given: bool, count: int, hidden: int, inter: int, dtype, device):
    if not given:
        return None, None
    return (
        normal(count, 2 * inter, seed=2, dtype=dtype, device=device),
        normal(count, hidden, seed=3, dtype=dtype, device=device),
    )


@FEW
@given(
    tokens=TOKENS,
    count=st.integers(1, 5),
    chosen=st.integers(1, 3),
    hidden=st.sampled_from([32, 64, 96, 160]),
    inter=st.sampled_from([32, 96, 128]),
    dtype=DTYPES,
    bias=st.booleans(),
    activation=ACTIVATIONS,
    added=st.booleans(),
)
def test_packed(device, tokens, count, chosen, hidden, inter, dtype, bias, activation, added):
    x = normal(tokens, hidden, dtype=dtype, device=device)
    where = routing(tokens, count, min(chosen, count), device)
    gate_up = packed(count, 2 * inter, hidden, seed=4, device=device)
    down = packed(count, hidden, inter, seed=5, device=device)
    first, last = biases(bias, count, hidden, inter, dtype, device)
    experts = ExpertWeights(gate_up, first, down, last, activation)
    residual = normal(tokens, hidden, seed=6, dtype=dtype, device=device) if added else None
    found = TRITON.moe(x, where, placed(experts), residual=residual, dtype=torch.float32)
    assert found.dtype is torch.float32
    # Hidden units and the outputs of each expert are rounded to x's type.
    assert relative_error(found, exact(x, where, experts, residual)) <= 3 * RESULT_ERROR[dtype]


@FEW
@given(
    tokens=TOKENS,
    count=st.integers(1, 5),
    chosen=st.integers(1, 5),
    hidden=st.sampled_from([5, 33, 64, 100]),
    inter=st.sampled_from([3, 64, 70]),
    dtype=DTYPES,
    bias=st.booleans(),
    activation=ACTIVATIONS,
    transposed=st.booleans(),
)
def test_dense(device, tokens, count, chosen, hidden, inter, dtype, bias, activation, transposed):
    x = normal(tokens, hidden, dtype=dtype, device=device)
    where = routing(tokens, count, min(chosen, count), device)
    gate_up = normal(count, 2 * inter, hidden, seed=4, dtype=dtype, device=device) / hidden**0.5
    down = normal(count, hidden, inter, seed=5, dtype=dtype, device=device) / inter**0.5
    if transposed:  # as in gpt-oss's checkpoints
        gate_up, down = (w.mT.contiguous().mT for w in (gate_up, down))
    first, last = biases(bias, count, hidden, inter, dtype, device)
    experts = ExpertWeights(gate_up, first, down, last, activation)
    found = TRITON.moe(x, where, experts)
    assert found.dtype is dtype
    assert relative_error(found, exact(x, where, experts)) <= 4 * RESULT_ERROR[dtype]


def layer(device: torch.device, count: int = 4, hidden: int = 64, inter: int = 64) -> ExpertWeights:
    return placed(
        ExpertWeights(
            packed(count, 2 * inter, hidden, seed=4, device=device), None,
            packed(count, hidden, inter, seed=5, device=device), None, ClampedSwiGLU(),
        )
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("form", ["packed", "dense"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_token_with_nan_or_infinity_spoils_itself_only(device, form, tokens, bad):
    experts = layer(device)
    if form == "dense":
        gate_up, down = (
            weight.dense().bfloat16()
            for weight in (experts.gate_up, experts.down)
            if isinstance(weight, PairedMXFP4)
        )
        experts = ExpertWeights(gate_up, None, down, None, experts.activation)
    x = normal(tokens, 64, dtype=torch.bfloat16, device=device)
    where = routing(tokens, 4, 2, device)
    healthy = TRITON.moe(x, where, experts)
    x[1, 5] = bad
    found = TRITON.moe(x, where, experts)
    assert same_kinds(found, exact(x, where, experts))
    assert not found[1].isfinite().any()
    others = [token for token in range(tokens) if token != 1]
    assert torch.equal(found[others], healthy[others])


@pytest.mark.parametrize("tokens", [2, 40])
def test_numbers_of_any_size(device, tokens):
    """Vectors are scaled on their way through float16. There hidden units are bounded, not scaled,
    so small ones count as much as the bound lets them.
    """
    experts, where = layer(device), routing(tokens, 4, 2, device)
    for size in (2.0**-8 if tokens == 2 else 2.0**-120, 2.0**20, 2.0**122):
        x = normal(tokens, 64, dtype=torch.bfloat16, device=device) * size
        found = TRITON.moe(x, where, experts, dtype=torch.float32)
        assert relative_error(found, exact(x, where, experts)) <= 3 * RESULT_ERROR[x.dtype]


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("scale", [0, 1, 128, 129, 254, NAN_SCALE])
def test_scales_at_the_edge(device, tokens, scale):
    """Those that the kernels hold, and those that are left to the reference."""
    down = packed(3, 64, 64, seed=5, device=device)
    down.scales[1, 5, 1] = scale
    gate_up = packed(3, 128, 64, seed=4, device=device)
    experts = ExpertWeights(gate_up, None, down, None, ClampedSwiGLU())
    x = normal(tokens, 64, dtype=torch.float32, device=device)
    where = Routing(
        torch.arange(tokens, device=device)[:, None] % 3, torch.ones(tokens, 1, device=device)
    )
    found = TRITON.moe(x, where, placed(experts))
    expected = exact(x, where, experts).float()
    assert same_kinds(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("tokens", [5, 60])
def test_experts_that_nobody_chose_and_one_that_all_did(device, tokens):
    experts = layer(device, count=6)
    x = normal(tokens, 64, dtype=torch.bfloat16, device=device)
    ids = torch.full((tokens, 2), 4, device=device)
    weights = torch.full((tokens, 2), 0.5, device=device)
    for second in (4, 1):  # the same expert twice, and another
        ids[:, 1] = second
        where = Routing(ids, weights)
        found = TRITON.moe(x, where, experts)
        assert relative_error(found, exact(x, where, experts)) <= 3 * RESULT_ERROR[x.dtype]


@pytest.mark.parametrize("tokens", [2, 50])
def test_a_batch_is_its_tokens_and_two_runs_are_one(device, tokens):
    experts, where = layer(device), routing(tokens, 4, 2, device)
    x = normal(tokens, 64, dtype=torch.bfloat16, device=device)
    found = TRITON.moe(x, where, experts)
    assert torch.equal(TRITON.moe(x, where, experts), found)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)).to(device)
    shuffled = Routing(where.experts[order], where.weights[order])
    assert torch.equal(TRITON.moe(x[order], shuffled, experts), found[order])


def test_no_tokens_and_tensors_of_other_kinds(device):
    experts, where = layer(device), routing(3, 4, 1, device)
    x = normal(3, 64, dtype=torch.bfloat16, device=device)
    none = TRITON.moe(x[:0], Routing(where.experts[:0], where.weights[:0]), experts)
    assert none.shape == (0, 64)
    found = TRITON.moe(x, where, experts)
    other = Routing(where.experts.int(), where.weights.double())
    assert torch.equal(TRITON.moe(x.mT.contiguous().mT, other, experts), found)
    assert relative_error(TRITON.moe(x.double(), where, experts), found) <= 2**-7


def test_the_residual_is_added_after_the_sum_over_ranks(device):
    experts, where = layer(device), routing(3, 4, 2, device)
    x = normal(3, 64, device=device)
    alone = TRITON.moe(x, where, experts)
    torch.testing.assert_close(Doubled().moe(x, where, experts, residual=x), x + 2 * alone)


def test_a_router_in_training_gets_its_gradient(device):
    experts, where = layer(device), routing(2, 4, 2, device)
    weights = where.weights.clone().requires_grad_()
    TRITON.moe(
        normal(2, 64, device=device), Routing(where.experts, weights), experts
    ).sum().backward()
    assert weights.grad is not None
    assert weights.grad.abs().min() > 0


@pytest.mark.parametrize("count", [1, 3, 128])
@pytest.mark.parametrize("tokens", [1, 5, 700])
def test_choices_are_sorted_by_expert(device, count, tokens):
    chosen, rows = min(count, 4), 16
    experts = routing(tokens, count, chosen, device).experts
    found = sort(experts, count, rows)
    ids = experts.flatten()
    assert torch.equal(found.order.long(), ids.argsort(stable=True))
    ends = ids.bincount(minlength=count).cumsum(0)
    assert found.starts.tolist() == [0, *ends.tolist()]
    blocks: dict[int, int] = {}
    for block, owner in enumerate(found.owners.tolist()):
        if owner < count:  # the kernels compute its place so
            start = int(found.starts[owner])
            blocks[owner] = blocks.get(owner, 0) + 1
            assert block == start // rows + owner + blocks[owner] - 1
    sizes = ids.bincount(minlength=count).tolist()
    assert blocks == {e: -(-size // rows) for e, size in enumerate(sizes) if size}


def test_block_shapes_follow_the_card_and_the_tokens():
    for architecture, card in CARDS.items():
        for size in (2, 4):
            shapes = [blocks_of(card, each, True, size) for each in (0.1, 8, 9, 33, 128, 1000)]
            rows = [shape.rows for shape in shapes]
            assert rows == sorted(rows)
            assert rows[0] == 16
            assert rows[-1] == (128 if architecture >= 90 and size == 2 else 64)


def test_large_blocks_come_through_descriptors(device, monkeypatch):
    """Of 128 rows, with some of the next expert's behind them, and columns beyond the matrix."""
    seen = []
    launch = expert_matrices.launch
    monkeypatch.setattr(
        expert_matrices, "launch", lambda k, g, *a, **o: (seen.append(o), launch(k, g, *a, **o))
    )
    x = normal(290, 64, dtype=torch.bfloat16, device=device)
    experts, where = layer(device, count=2, inter=96), routing(290, 2, 1, device)
    found = TRITON.moe(x, where, experts)
    assert [options["BULK"] for options in seen if "BULK" in options] == [True, True]
    assert relative_error(found, exact(x, where, experts)) <= 3 * RESULT_ERROR[x.dtype]


@FEW
@given(
    tokens=st.integers(1, 5),
    count=st.integers(1, 40),
    chosen=st.integers(1, 8),
    dtype=DTYPES,
    softmax_first=st.booleans(),
    renormalize=st.booleans(),
)
def test_route(device, tokens, count, chosen, dtype, softmax_first, renormalize):
    chosen = min(chosen, count)
    order = normal(tokens, count).argsort(-1)
    logits = (order.float() / 4 - 3).to(dtype).to(device)  # no two of a row are equal
    options = {"softmax_first": softmax_first, "renormalize": renormalize}
    found = triton.route(logits, chosen, **options)
    expected = reference.route(logits, chosen, **options)
    assert found.experts.dtype is torch.int64
    assert torch.equal(found.experts, expected.experts)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_router_that_is_not_a_number_still_names_experts_that_there_are(device, bad):
    logits = torch.full((3, 9), bad, device=device)
    logits[1, 3] = 0
    logits[2] = torch.arange(9)
    logits[2, 6] = bad
    for first in (False, True):
        found = triton.route(logits, 9, softmax_first=first, renormalize=first)
        expected = reference.route(logits, 9, softmax_first=first, renormalize=first)
        for row in found.experts.tolist():
            assert sorted(row) == list(range(9))
        assert same_kinds(found.weights, expected.weights)
