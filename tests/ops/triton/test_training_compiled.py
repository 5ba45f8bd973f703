"""Compiled layers: one graph for all layers of a form, and the same gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from ossia.config import ModelConfig
from ossia.model import Decoder, decoder
from ossia.ops.triton.training import TritonTraining
from ossia.train.objective import Objective
from ossia.train.settings import Settings
from tests.models import gpt2_like, small
from tests.ops.triton.test_frozen_step import built
from tests.ops.triton.test_training_step import batches, gpt_oss


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch):
    """torch.compile as far as the graphs, which run as they were traced: no C++ is compiled."""
    to_graphs = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **kw: to_graphs(function, backend="aot_eager", **kw)
    )
    decoder._compiled.cache_clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    decoder._compiled.cache_clear()


@pytest.mark.parametrize("config", [gpt2_like(), gpt_oss()], ids=["gpt2", "gpt-oss"])
def test_layers_of_a_form_share_a_graph(device, traced, config: ModelConfig):
    """GPT-2's attention and MLP; gpt-oss's attention with a window and without, for its experts
    have kernels. Twice as many layers take no more.
    """
    config = replace(config, layers=config.layers[:2] * 2)
    model = Decoder(config, TritonTraining()).to(device)
    model.init_weights(torch.Generator(device).manual_seed(1))
    objective = Objective(model, balance=0.01, z_loss=0.0).train()
    batch = batches(config, Settings(batch_size=1, length=12))(0)
    found = []
    for compiled in (False, True):
        model.compile_layers(compiled)
        model.zero_grad()
        tensors = (t.to(device) for t in (batch.inputs, batch.targets, batch.documents))
        losses = objective(*tensors, 12)
        losses.total.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((losses.total.item(), gradients))
    assert counters["stats"]["unique_graphs"] == 2
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6)


def test_layers_with_updates_share_a_graph(device, traced):
    """Under autocast, as LoRA trains on a GPU: attention with a window and without."""
    model = built(device, TritonTraining(), narrow=True)
    objective = Objective(model, balance=0.0, z_loss=0.0).train()
    batch = batches(small(), Settings(batch_size=1, length=12))(0)
    tensors = [t.to(device) for t in (batch.inputs, batch.targets, batch.documents)]
    found = []
    for compiled in (False, True):
        model.compile_layers(compiled)
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective(*tensors, 12).total
        loss.backward()
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found.append(torch.stack([loss.detach(), *gradients]))
    assert counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=1e-3)
