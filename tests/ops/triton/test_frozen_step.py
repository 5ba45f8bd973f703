"""A step of LoRA on a packed gpt-oss on the kernels: the losses, the gradients and the weights of
the CPU's own path, and what it keeps of a layer for the gradient.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ossia.adapt import lora
from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.ops import mxfp4
from ossia.ops.adapted import Adapted
from ossia.ops.training import Training
from ossia.ops.triton import frozen
from ossia.ops.triton.training import TritonTraining
from ossia.train import budget
from ossia.train.budget import Updates
from ossia.train.corpus.shards import Batch
from ossia.train.evaluate import hidden_states
from ossia.train.objective import Objective
from ossia.train.settings import Settings
from tests.models import small
from tests.ops.triton.common import relative_error
from tests.ops.triton.test_training_step import batches

LEARNED = lora.LoRA(3, 6.0, 0.0, ("attention", "experts"))


def tables_narrow(config: ModelConfig, device: torch.device) -> dict[str, Tensor]:
    """A random checkpoint's weights, as `lora.load_base` leaves them on a GPU."""
    whole = Decoder(with_expert_format(config, ExpertFormat.DENSE), Training())
    whole.init_weights(torch.Generator().manual_seed(0))
    weights = whole.state_dict()
    narrow = {f"{name}.weight" for name, _ in lora.adaptable(whole)} | set(lora.TABLES)
    weights = {n: w.to(torch.bfloat16) if n in narrow else w for n, w in weights.items()}
    for name, module in whole.named_modules():
        if isinstance(module, Experts):
            packed = mxfp4.quantize(weights.pop(f"{name}.weight").float()).tensors()
            weights |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
    return {name: weight.to(device) for name, weight in weights.items()}


def built(device: torch.device, ops: Training, *, narrow: bool) -> Decoder:
    config = replace(small(), layers=small().layers[:2])
    weights = tables_narrow(config, device)
    if not narrow:  # as on the CPU
        weights |= {name: weights[name].float() for name in lora.TABLES}
    config = with_expert_format(config, ExpertFormat.MXFP4)
    decoder = Decoder.assembled(config, weights, ops).requires_grad_(False)
    lora.attach(decoder, LEARNED, torch.Generator().manual_seed(1))
    for _, update in lora.updates(decoder):  # B begins at zero, which would hide A's gradient
        with torch.no_grad():
            drawn = torch.randn(update.b.shape, generator=torch.Generator().manual_seed(2))
            update.b.copy_(0.1 * drawn)
    return decoder.to(device).train()


def steps(decoder: Decoder, batch: Batch, count: int, dtype: torch.dtype) -> list[Tensor]:
    """The losses of some steps, and then the gradients of the last and the weights after it."""
    learned = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.5)  # Adam divides rounding errors by themselves
    objective = Objective(decoder, balance=0.0, z_loss=0.0)
    device = decoder.device
    tensors = [t.to(device) for t in (batch.inputs, batch.targets, batch.documents)]
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = objective(*tensors, 24).total
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = [p.grad for p in learned if p.grad is not None]
    assert len(gradients) == len(learned)
    return [torch.stack(losses), *gradients, *(p.detach() for p in learned)]


@pytest.mark.parametrize("recompute", [False, True])
def test_steps_are_those_of_the_cpu(device, recompute, monkeypatch):
    layers: list[object] = []
    mixture = frozen.mixture
    monkeypatch.setattr(frozen, "mixture", lambda *a: layers.append(a[2]) or mixture(*a))
    batch = batches(small(), Settings(batch_size=2, length=12))(0)
    cpu = torch.device("cpu")
    expected = steps(built(cpu, Adapted(), narrow=False), batch, 2, torch.float32)
    decoder = built(device, TritonTraining(), narrow=True)
    assert decoder.embedding.weight.dtype is torch.bfloat16
    assert decoder.unembedding is not None
    assert decoder.unembedding.value.dtype is torch.bfloat16  # type: ignore[union-attr]
    if recompute:
        decoder.recompute_layers()
    found = steps(decoder, batch, 2, torch.float32)
    assert len(layers) == 2 * 2 * (2 if recompute else 1)
    assert len(found) == len(expected)
    assert relative_error(found[0].cpu(), expected[0]) < 3e-6
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert relative_error(mine.cpu(), theirs) < 1e-4


def test_in_bfloat16_losses_are_near(device):
    batch = batches(small(), Settings(batch_size=1, length=12))(0)
    cpu = torch.device("cpu")
    expected = steps(built(cpu, Adapted(), narrow=False), batch, 1, torch.float32)
    found = steps(built(device, TritonTraining(), narrow=True), batch, 1, torch.bfloat16)
    assert relative_error(found[0].cpu(), expected[0]) < 1e-2
    learned = len(expected) // 2
    for mine, theirs in zip(found[1 : learned + 1], expected[1 : learned + 1], strict=True):
        assert float((mine.cpu() - theirs).norm()) < 0.1 * float(theirs.norm())


def test_a_layer_keeps_what_the_estimate_says(device):
    """Under autocast, in bytes, of a pass over 48 tokens."""
    decoder = built(device, TritonTraining(), narrow=True)
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0)).to(device)
    model = {t.untyped_storage().data_ptr() for t in (*decoder.parameters(), *decoder.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in model:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast(device.type, torch.bfloat16):
        assert hidden_states(decoder, tokens, None).requires_grad
    updates = Updates(LEARNED, native=True, narrow=True)
    estimate = budget.layers(decoder.config, tokens.numel(), recompute=False, trained=updates)
    factors = sum(2 * p.numel() for p in decoder.parameters() if p.requires_grad)
    print(sum(kept.values()), estimate, factors)
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.1)
