"""The training backend's attention against the reference: values, gradients and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.ops import tiled_attention
from ossia.ops.training import Training
from tests.ops.flat import Flat, reference

attention = Flat(Training()).attention


def normal(*shape: int, seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def packed(batch: int, length: int, seed: int) -> Tensor:
    """Documents of a few tokens each, other ones in each row."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 0.2).long().cumsum(1)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 90),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 70),
    with_sinks=st.booleans(),
    documents=st.sampled_from(["none", "same", "different"]),
)
def test_values_and_gradients_are_the_references(
    batch, length, kv_heads, group, window, with_sinks, documents
):
    heads, dim = kv_heads * group, 5
    own = {
        "none": None,
        "same": packed(1, length, 5).expand(batch, -1),
        "different": packed(batch, length, 6),
    }[documents]
    inputs = [
        normal(batch, length, heads, dim, seed=1),
        normal(batch, length, kv_heads, dim, seed=2),
        normal(batch, length, kv_heads, dim, seed=3),
    ]
    if with_sinks:
        inputs.append(normal(heads, seed=4))
    weights = normal(batch, length, heads, dim, seed=7)

    def outcome(function):
        leaves = [x.clone().requires_grad_() for x in inputs]
        sinks = leaves[3] if with_sinks else None
        out = function(*leaves[:3], window=window, sinks=sinks, documents=own)
        return out, torch.autograd.grad((out * weights).sum(), leaves)

    found, expected = outcome(attention), outcome(reference.attention)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_are_those_of_finite_differences(window):
    """The reference might share an error of thought; a difference quotient does not."""
    q, k, v = (normal(2, 7, heads, 4, seed=i) for i, heads in enumerate((4, 2, 2)))
    leaves = [x.requires_grad_() for x in (q, k, v, normal(4, seed=3))]
    documents = torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 2]])

    def function(q, k, v, sinks):
        return attention(q, k, v, sinks=sinks, window=window, documents=documents)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_round_and_no_more(dtype):
    q, k, v = (normal(2, 100, heads, 16, seed=i) for i, heads in enumerate((4, 2, 2)))
    sinks = normal(4, seed=3)
    expected = reference.attention(q, k, v, sinks=sinks, window=40)
    found = attention(q.to(dtype), k.to(dtype), v.to(dtype), sinks=sinks, window=40)
    assert found.dtype == dtype
    error = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize(("window", "documents"), [(None, False), (64, False), (64, True)])
def test_memory_for_the_gradient_is_linear_in_the_length(window, documents):
    """What is saved between the passes is counted: no quadratic tensor is among it."""

    def saved(length: int) -> int:
        q = normal(1, length, 2, 8, seed=0, dtype=torch.float32).requires_grad_()
        own = packed(1, length, 1) if documents else None
        sizes = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.untyped_storage().nbytes())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = attention(q, q, q, window=window, sinks=torch.zeros(2), documents=own)
        node: Any = out.grad_fn  # also the function's ctx, which keeps the pieces
        pieces = node.plan.pieces
        masks = {p.mask.untyped_storage().data_ptr(): p.mask for p in pieces if p.mask is not None}
        return sum(sizes) + sum(mask.untyped_storage().nbytes() for mask in masks.values())

    assert saved(4096) <= 4.1 * saved(1024)


def test_dropout_falls_back_to_the_reference():
    q = normal(1, 50, 2, 8, seed=0)
    torch.manual_seed(0)
    found = attention(q, q, q, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(found, reference.attention(q, q, q, dropout=0.5))


def test_autocast_does_not_round_scores():
    q, k, v = (normal(1, 50, 2, 8, seed=i, dtype=torch.float32) for i in range(3))
    torch.manual_seed(0)
    expected = attention(3 * q, k, v, dropout=0.1)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(3 * q, k, v, dropout=0.1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("kind", ["whole", "packed"])
def test_as_one_operation_of_a_compiled_graph(
    dtype: torch.dtype, window: int | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a compiler is told of its results holds; they and the gradients are the same."""
    documents = packed(2, 70, 5) if kind == "packed" else None
    q, k, v = (normal(2, 70, heads, 8, seed=i, dtype=dtype) for i, heads in enumerate((4, 2, 2)))
    sinks = normal(4, seed=3, dtype=dtype)
    tensors = [x.requires_grad_() for x in (q, k, v, sinks)]
    options = (documents, window, torch.float32)
    torch.library.opcheck(tiled_attention._as_one, (*tensors, *options))
    slope = normal(2, 70, 4, 8, seed=4, dtype=dtype)
    outcomes = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        seen = tiled_attention.Seen(documents, window)
        out = tiled_attention.attend(q, k, v, sinks, seen, torch.float32)
        outcomes.append([out, *torch.autograd.grad(out, tensors, slope)])
    torch.testing.assert_close(*outcomes)
