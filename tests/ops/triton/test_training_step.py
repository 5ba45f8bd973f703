"""A whole training step on the kernels: the definition's losses and gradients, and that nothing in
it waits for the device but one read of its figures.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ossia.adapt import lora
from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.model import Decoder
from ossia.ops.training import Training
from ossia.ops.triton import recording
from ossia.ops.triton.launch import CARDS
from ossia.ops.triton.training import TritonTraining
from ossia.train import loop, loss
from ossia.train.corpus.shards import Batch, TextBatches
from ossia.train.loop import Trainer
from ossia.train.objective import Objective
from ossia.train.settings import Settings
from tests.models import gpt2_like, gpt_oss_like, qwen3_like, small
from tests.ops.triton.common import relative_error


def gpt_oss() -> ModelConfig:
    return with_expert_format(gpt_oss_like(), ExpertFormat.DENSE)


def batches(config: ModelConfig, settings: Settings) -> TextBatches:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(config.vocab_size, (4000,), generator=generator, dtype=torch.int32)
    return TextBatches([text], settings, separator=3)


@pytest.mark.parametrize("config", [gpt2_like, gpt_oss, qwen3_like])
def test_losses_and_gradients_are_the_definitions(device, config):
    config = config()
    decoder = Decoder(config, Training())
    decoder.init_weights(torch.Generator().manual_seed(1))
    batch = batches(config, Settings(batch_size=2, length=24))(0)
    found = []
    for ops in (Training(), TritonTraining()):
        on = decoder.on(ops).train(False)
        on.zero_grad()
        objective = Objective(on.to(device), balance=0.01, z_loss=1e-3)
        tensors = (t.to(device) for t in (batch.inputs, batch.targets, batch.documents))
        objective.decoder.train(not config.dropout.residual)
        losses = objective(*tensors, 48)
        losses.total.backward()
        gradients = {
            name: p.grad.clone() for name, p in on.named_parameters() if p.grad is not None
        }
        found.append((losses.total.detach(), gradients))
    (expected, theirs), (ours, mine) = found
    assert relative_error(ours, expected) < 1e-6
    # The gradient of a bias of keys is zero but for rounding.
    least = 1e-6 * max(float(gradient.abs().amax()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        difference = float((mine[name] - gradient).abs().amax())
        assert difference < least + 2e-5 * float(gradient.abs().amax()), name


@pytest.mark.parametrize("updated", [False, True])
def test_a_step_waits_for_the_device_once(
    updated: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On meta tensors, which have no numbers: whatever asks for one fails. Only the figures of the
    step are given. All weights are trained, or updates of packed ones.
    """
    waits: list[int] = []

    def read(figures: Tensor) -> list[float]:
        assert figures.device.type == "meta"
        waits.append(len(figures))
        return [1.0] * len(figures)

    config = with_expert_format(small(), ExpertFormat.MXFP4) if updated else gpt_oss()
    rounds = 0 if updated else 5
    settings = Settings(steps=10, batch_size=4, length=32, accumulate=2, mxfp4_steps=rounds)
    with torch.device("meta"):
        decoder = Decoder(config, TritonTraining())
    if updated:
        learned = lora.LoRA(4, 8.0, 0.0, ("attention", "experts"))
        lora.attach(decoder.requires_grad_(False), learned, torch.Generator())
    monkeypatch.setattr(loop, "build_optimizers", lambda *_: [])
    monkeypatch.setattr(loop, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(loss, "_on_card", lambda *_: True)
    monkeypatch.setattr("ossia.ops.triton.training_loss.chunk_elements", lambda _: 1 << 10)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    trainer = Trainer(decoder, batches(config, settings), lambda _: {}, settings, tmp_path)
    share = trainer._share

    def shared(step: int) -> loop._Share:
        found = share(step)
        parts = [
            Batch(part.inputs.to("meta"), part.targets.to("meta"), part.documents.to("meta"))
            for part in found.parts
        ]
        assert all(part.inputs.device.type == "meta" for part in found.parts)
        return loop._Share(parts, found.count, found.tokens)

    trainer._share = shared  # type: ignore[method-assign]
    with recording(CARDS[90]) as launches:
        for step in (0, 7):  # the second with rounded experts
            trainer.progress.step = step
            with monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", read)
                report = trainer.step()
            assert (report.loss, report.balance, report.gradient_norm) == (1.0, 1.0, 1.0)
    assert waits == [3, 3]
    kernels = {found.kernel.__name__ for found in launches}
    own = {"products_turned", "activate_backward"} if updated else {"round_blocks"}
    assert kernels >= {"_softmax_losses", "products", "weights_backward"} | own
