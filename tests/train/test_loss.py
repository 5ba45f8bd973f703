"""The fused cross-entropy against torch's own, over all logits, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.ops import packing
from ossia.train import loss
from ossia.train.loss import IGNORED, linear_cross_entropy


def inputs(tokens: int, vocab: int, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 1000 + vocab)
    hidden = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, count: int, z_loss: float) -> Tensor:
    logits = hidden @ weight.T
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    squares = logits.logsumexp(-1)[targets != IGNORED].square().sum()
    return (cross_entropy + z_loss * squares) / count


@settings(max_examples=50)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(1, 30),
    budget=st.integers(1, 300),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
    ignored=st.integers(0, 40),
    factor=st.sampled_from([1.0, -2.5]),
)
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    tokens, vocab, budget, z_loss, ignored, factor
):
    hidden, weight, targets = inputs(tokens, vocab)
    targets[:ignored] = IGNORED
    count = max(1, tokens - ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", budget)
        total, cross_entropy = linear_cross_entropy(hidden, weight, targets, count, z_loss)
    expected = plain(hidden, weight, targets, count, z_loss)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(cross_entropy, plain(hidden, weight, targets, count, 0.0))
    found = torch.autograd.grad(factor * total, [hidden, weight])
    torch.testing.assert_close(found, torch.autograd.grad(factor * expected, [hidden, weight]))


def test_autocast_rounds_the_products_and_keeps_the_sums():
    hidden, weight, targets = inputs(64, 50, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, targets, 64)
    expected = plain(hidden, weight, targets, 64, 0.0)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=0)
    gradients = torch.autograd.grad(total, [hidden, weight])
    for found, true in zip(gradients, torch.autograd.grad(expected, [hidden, weight]), strict=True):
        assert found.dtype == torch.float32
        assert (found - true).norm() < 2e-2 * true.norm()


def test_a_hopeless_target_has_a_finite_loss():
    """Its probability underflows: the loss must come from logarithms."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0], [0.0]])
    total, _ = linear_cross_entropy(hidden, weight, torch.tensor([1]), 1)
    assert total.item() == pytest.approx(500)


def test_without_a_gradient_none_is_computed():
    hidden, weight, targets = inputs(8, 5)
    with torch.no_grad():
        total, _ = linear_cross_entropy(hidden, weight, targets, 8)
    torch.testing.assert_close(total, plain(hidden, weight, targets, 8, 0.0))


def test_a_frozen_unembedding_has_no_gradient_and_changes_none() -> None:
    hidden, weight, targets = inputs(9, 7)
    plain(hidden, weight, targets, 9, 0.3).backward()
    alone = hidden.detach().requires_grad_()
    total, _ = linear_cross_entropy(alone, weight.detach(), targets, 9, 0.3)
    total.backward()
    torch.testing.assert_close(alone.grad, hidden.grad)


@pytest.mark.parametrize("native", [True, False])
def test_a_frozen_unembedding_in_bfloat16(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By native products, where they were built, and by torch's."""
    if native and packing.native() is None:
        pytest.skip("the native module was not built")
    if not native:
        monkeypatch.setattr(packing, "native", lambda: None)
    hidden, weight, targets = inputs(64, 50, torch.float32)
    targets[::3] = IGNORED
    monkeypatch.setattr(loss, "CHUNK", 20 * 50)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight.detach(), targets, 42)
    expected = plain(hidden, weight, targets, 42, 0.0)
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=0)
    (found,), (true,) = (torch.autograd.grad(value, [hidden]) for value in (total, expected))
    assert (found - true).norm() < 2e-2 * true.norm()
