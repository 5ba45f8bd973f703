"""The training kernels' attention against the definition and its autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ossia.ops import REFERENCE, AttentionSpec, Documents
from ossia.ops.triton import recording, training_attention
from ossia.ops.triton.launch import CARDS
from ossia.ops.triton.training_attention import attend
from tests.ops.triton.common import DTYPES, FEW, RESULT_ERROR, normal, relative_error


def packed(batch: int, length: int, seed: int) -> Tensor:
    """Documents of a few tokens each, other ones in each row."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.1).long().cumsum(1)


def outcome(function, inputs: list[Tensor], **spec):
    """The output and the gradients of all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    q, k, v, *sinks = leaves
    out = function(q, k, v, AttentionSpec(sinks=sinks[0] if sinks else None, **spec))
    slope = normal(*out.shape, seed=9, dtype=out.dtype, device=out.device)
    return out.detach(), *torch.autograd.grad((out * slope).sum(), leaves)


def tensors(device, batch, length, heads, kv_heads, size, sinks, dtype) -> list[Tensor]:
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads)]
    found = [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    return [x.to(device) for x in (*found, *([normal(heads, seed=3)] if sinks else ()))]


@FEW
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 90),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3]),
    size=st.sampled_from([5, 16, 32]),
    window=st.none() | st.integers(1, 70),
    sinks=st.booleans(),
    documents=st.booleans(),
    dtype=DTYPES,
)
def test_values_and_gradients_are_the_references(
    device, batch, length, kv_heads, group, size, window, sinks, documents, dtype
):
    own = Documents(packed(batch, length, 6).to(device)) if documents else None
    inputs = tensors(device, batch, length, kv_heads * group, kv_heads, size, sinks, dtype)
    found = outcome(lambda q, k, v, spec: attend(q, k, v, spec, own), inputs, window=window)
    expected = outcome(
        lambda q, k, v, spec: REFERENCE.attention(q, k, v, spec, own),
        [x.double() for x in inputs],
        window=window,
    )
    for ours, theirs in zip(found, expected, strict=True):
        # A gradient that the definition has at zero, as that of a query with one key, is rounding.
        scale = max(1.0, float(theirs.abs().amax()))
        assert float((ours.double() - theirs).abs().amax()) <= 8 * RESULT_ERROR[dtype] * scale
        assert ours.dtype is (dtype if ours.dim() > 1 else torch.float32)


def test_bounds_of_documents(device):
    ids = torch.tensor([[3, 3, 4, 4, 4, 9], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]], device=device)
    bounds = Documents(ids).bounded().bounds
    assert bounds is not None
    firsts, ends = bounds
    assert firsts.tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6, [0, 1, 2, 3, 4, 5]]
    assert ends.tolist() == [[2, 2, 5, 5, 5, 6], [6] * 6, [1, 2, 3, 4, 5, 6]]


def test_blocks_of_all_sizes_agree(device, monkeypatch):
    """Tiles that are wider than tall, and taller than wide, as on a card."""
    inputs = tensors(device, 1, 100, 2, 1, 16, True, torch.float32)
    own = Documents(packed(1, 100, 2).to(device))
    found = []
    for forward, keys, queries in (((32, 32), (32, 32), (32, 32)), ((64, 16), (16, 64), (64, 16))):
        blocks = [training_attention._Blocks(*shape, 4, 1) for shape in (forward, keys, queries)]
        shapes = training_attention._Shapes(*blocks)
        monkeypatch.setattr(training_attention, "_FLOAT32", {256: shapes})
        for window in (None, 20):
            found.append(
                outcome(lambda q, k, v, spec: attend(q, k, v, spec, own), inputs, window=window)
            )
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert relative_error(one, other) <= 1e-5


def test_dropout_is_a_function_of_the_seed_and_has_its_gradient(device):
    """Over values that are the identity the output is the kept probabilities, which give the
    definition's output and gradients.
    """
    length, size, rate = 32, 32, 0.3
    q, k, _ = tensors(device, 1, length, 1, 1, size, False, torch.float32)
    sinks = normal(1, seed=3).to(device)
    identity = torch.eye(length, device=device)[None, :, None, :]

    def attention(q, k, v, spec):
        torch.manual_seed(1)
        return attend(q, k, v, spec, None)

    spec = AttentionSpec(sinks=sinks, dropout=rate)
    dropped = attention(q, k, identity, spec)[0, :, 0]
    assert torch.equal(dropped, attention(q, k, identity, spec)[0, :, 0])
    probabilities = REFERENCE.attention(q, k, identity, AttentionSpec(sinks=sinks))[0, :, 0]
    kept = dropped != 0
    assert relative_error(dropped * (1 - rate), torch.where(kept, probabilities, 0)) < 1e-5
    share = float(kept.tril().sum()) / (length * (length + 1) / 2)
    assert abs(share - (1 - rate)) < 0.1

    def definition(q, k, v, spec):
        scores = q[0, :, 0] @ k[0, :, 0].T * size**-0.5
        hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
        scores = torch.cat([scores, spec.sinks.expand(length, 1)], 1)
        weights = scores.softmax(1)[:, :-1] * kept / (1 - rate)
        return (weights @ v[0, :, 0])[None, :, None]

    inputs = [q, k, normal(1, length, 1, size, seed=5).to(device), sinks]
    found = outcome(attention, inputs, dropout=rate)
    expected = outcome(definition, [x.double() for x in inputs], dropout=rate)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("documents", [False, True])
def test_the_operation_is_one_for_torch(device, documents):
    """Its fake form, its gradient and its schema agree with what it computes."""
    q, k, v, sinks = tensors(device, 1, 20, 2, 1, 16, True, torch.float32)
    bounds = (None, None)
    if documents:
        bounds = Documents(packed(1, 20, 2).to(device)).bounded().bounds or ()
    leaves = [x.requires_grad_() for x in (q, k, v, sinks)]
    arguments = (*leaves, *bounds, None, 7, 0.0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(training_attention._attention, arguments, test_utils=checks)


def test_a_batch_may_have_more_heads_than_a_grid_has_second_indices():
    """CUDA C++ Programming Guide, compute capabilities: 2^31 - 1 blocks by 65,535 by 65,535."""
    batch, length, heads = 8192, 200, 16
    q = torch.empty(batch, length, heads, 64, dtype=torch.bfloat16, device="meta")
    k = torch.empty(batch, length, heads // 2, 64, dtype=torch.bfloat16, device="meta")
    sinks = torch.empty(heads, device="meta")
    with recording(CARDS[90]) as launches:
        out, lse = training_attention.forward(q, k, k, sinks, None, None, None, 0, 0.0)
        training_attention.backward(out, q, k, k, sinks, None, None, None, out, lse, 0, 0.0)
    assert len(launches) == 4
    for launch in launches:
        assert math.prod(launch.grid) >= batch * heads // 2
        assert all(size <= 65_535 for size in launch.grid[1:])
