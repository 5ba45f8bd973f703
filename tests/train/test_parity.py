"""Training by our objective is training by transformers: losses and gradients, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ossia import checkpoint, load_model
from ossia.model import Decoder
from ossia.ops.training import Training, for_device
from ossia.train.objective import Objective
from tests.transformers_models import VOCAB, gpt2, gpt_oss, qwen3_moe

LENGTH, STEPS, RATE = 40, 4, 0.05


@pytest.mark.parametrize("ops", [Training(), for_device(torch.device("cpu"))], ids=["", "native"])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("build", [gpt2, gpt_oss, qwen3_moe])
def test_losses_and_weights_agree_after_every_step(
    build: Callable, recomputed: bool, ops: Training, tmp_path
) -> None:
    """Plain gradient descent, so that the weights show the gradients themselves: an optimizer that
    divides by their size would hide a wrong factor.
    """
    torch.manual_seed(0)
    theirs = build().train()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs", dtype=torch.float32)
    ours = Decoder(loaded.config, ops)
    ours.load_state_dict(loaded.state_dict())
    if recomputed:
        ours.recompute_layers()
    objective = Objective(ours, balance=0.0, z_loss=0.0).train()
    for _ in range(STEPS):
        tokens = torch.randint(VOCAB - 1, (3, LENGTH))
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        losses = objective(inputs, targets, None, targets.numel())
        expected = theirs(tokens, labels=tokens).loss
        torch.testing.assert_close(losses.cross_entropy, expected, rtol=2e-6, atol=0)
        descend(ours, losses.total)
        descend(theirs, expected)
    found, true = weights(ours, tmp_path / "ours"), dict(theirs.state_dict())
    for name, value in found.items():
        torch.testing.assert_close(value, true[name], rtol=1e-4, atol=2e-6, msg=name)


def descend(model: torch.nn.Module, loss: Tensor) -> None:
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
                parameter.grad = None


def weights(ours, folder) -> dict[str, Tensor]:
    """Ours under their names, as transformers reads what we save."""
    checkpoint.save(ours, folder)
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())
