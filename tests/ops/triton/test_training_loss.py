"""The kernel of the cross-entropy against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ossia.ops.triton.training_loss import chunk_elements, softmax_losses
from tests.ops.triton.common import normal


@pytest.mark.parametrize("vocab", [3, 300, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_slopes_are_those_of_the_formula(device, vocab, dtype):
    logits = (3 * normal(9, vocab, seed=1)).to(dtype).to(device)
    targets = torch.randint(vocab, (9,), generator=torch.Generator().manual_seed(2)).to(device)
    targets[3] = -100
    wide = logits.double().requires_grad_()
    entropy = F.cross_entropy(wide, targets, reduction="sum")
    squares = (wide.logsumexp(1).square() * (targets >= 0)).sum()
    (expected,) = torch.autograd.grad((entropy + 0.01 * squares) / 8, wide)
    before = logits.clone()
    sums = softmax_losses(logits, targets, 8.0, 0.01, slopes=False)
    assert torch.equal(logits, before)
    assert torch.equal(sums, softmax_losses(logits, targets, 8.0, 0.01, slopes=True))
    torch.testing.assert_close(sums.double(), torch.stack([entropy, squares]), rtol=1e-6, atol=0)
    error = 1e-6 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(logits.double(), expected, rtol=error, atol=1e-8)
    assert not logits[3].any()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_diverged_shows_and_what_is_ignored_does_not(device, number):
    logits = normal(2, 50, seed=1).to(device)
    logits[0, 7] = number
    targets = torch.tensor([-100, 4], device=device)
    assert softmax_losses(logits.clone(), targets, 1.0, 0.0, slopes=True).isfinite().all()
    targets[0] = 4
    assert not softmax_losses(logits, targets, 1.0, 0.0, slopes=True)[0].isfinite()


@pytest.mark.parametrize(
    ("total", "elements"), [(150 << 30, 1 << 28), (15 << 30, 1 << 27), (8 << 30, 1 << 27)]
)
def test_chunks_fit_the_card(monkeypatch, total, elements):
    properties = type("Properties", (), {"total_memory": total})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert chunk_elements(torch.device("cuda:0")) == elements
