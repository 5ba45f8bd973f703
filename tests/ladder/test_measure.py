"""Bytes kept for a gradient, against what torch's allocator has not been given back."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ossia.ladder.measure import kept_bytes
from ossia.train.objective import Objective
from tests.models import build, small


def test_what_a_linear_layer_and_a_relu_keep_is_their_input_and_their_output() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    assert kept_bytes(module, torch.randn(4, 8)) == 4 * (4 * 8 + 4 * 16)


def test_a_model_keeps_what_the_allocator_still_holds_after_its_forward_pass() -> None:
    objective = Objective(build(small()), balance=0.01, z_loss=0.0)
    tokens = torch.arange(4 * 32).remainder(50).view(4, 32)
    documents = torch.zeros_like(tokens)
    inputs = tokens, tokens, documents, tokens.numel()
    found = kept_bytes(objective, *inputs)
    gc.collect()  # or what other tests have left is given back meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        losses = objective(*inputs)
    assert losses.total.requires_grad
    held = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert found == pytest.approx(held, rel=0.1)
