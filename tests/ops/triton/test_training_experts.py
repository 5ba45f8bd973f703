"""The training kernels' mixture of experts against the definition and its autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import REFERENCE, Routing
from ossia.ops.rounded import Rounded, round_trip
from ossia.ops.triton import training_experts
from ossia.ops.triton.training import TritonTraining
from ossia.ops.values import ExpertWeights
from tests.ops.triton.common import normal, relative_error

NAMES = ("x", "weights", "residual", "gate_up", "gate_up_bias", "down", "down_bias")


def inputs(device, tokens, hidden, inter, experts, chosen, *, bias=True) -> dict[str, Tensor]:
    shapes = {
        "x": (tokens, hidden),
        "weights": (tokens, chosen),
        "residual": (tokens, hidden),
        "gate_up": (experts, 2 * inter, hidden),
        "gate_up_bias": (experts, 2 * inter),
        "down": (experts, hidden, inter),
        "down_bias": (experts, hidden),
    }
    found = {
        name: normal(*shape, seed=i).to(device) for i, (name, shape) in enumerate(shapes.items())
    }
    found["gate_up"] *= hidden**-0.5
    found["down"] *= inter**-0.5
    return found if bias else {k: v for k, v in found.items() if not k.endswith("bias")}


def choices(device, tokens, experts, chosen) -> Tensor:
    """Of each token other experts; the second is never chosen."""
    generator = torch.Generator().manual_seed(7)
    allowed = torch.tensor([0, *range(2, experts)])
    drawn = [torch.randperm(experts - 1, generator=generator)[:chosen] for _ in range(tokens)]
    return allowed[torch.stack(drawn)].to(device)


def outcome(backend, values, experts: Tensor, activation, wrap=lambda weight: weight):
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    stack = ExpertWeights(
        wrap(leaves["gate_up"]), leaves.get("gate_up_bias"),
        wrap(leaves["down"]), leaves.get("down_bias"), activation,
    )  # fmt: skip
    routing = Routing(experts, leaves["weights"])
    out = backend.moe(leaves["x"], routing, stack, residual=leaves["residual"])
    slope = normal(*out.shape, seed=9).to(out)
    gradients = torch.autograd.grad((out * slope).sum(), list(leaves.values()))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize(
    ("sizes", "activation", "bias"),
    [
        ((1, 16, 16, 4, 1), SwiGLU(), False),
        ((7, 20, 12, 4, 2), ClampedSwiGLU(limit=0.5), True),
        ((70, 40, 36, 9, 4), ClampedSwiGLU(), True),
        ((150, 16, 80, 3, 2), SwiGLU(), True),
    ],
)
def test_values_and_gradients_are_the_references(device, sizes, activation, bias):
    values = inputs(device, *sizes, bias=bias)
    chosen = choices(device, sizes[0], sizes[3], sizes[4])
    found = outcome(TritonTraining(), values, chosen, activation)
    wide = {name: value.double() for name, value in values.items()}
    expected = outcome(REFERENCE, wide, chosen, activation)
    for name in found:
        assert relative_error(found[name], expected[name]) < 2e-6, name
    assert not found["gate_up"][1].any()  # of an expert without tokens


def test_autocast_rounds_and_no_more(device):
    values = inputs(device, 60, 32, 48, 4, 2)
    chosen = choices(device, 60, 4, 2)
    with torch.autocast(device.type, torch.bfloat16):
        found = outcome(TritonTraining(), values, chosen, ClampedSwiGLU())
    wide = {name: value.double() for name, value in values.items()}
    expected = outcome(REFERENCE, wide, chosen, ClampedSwiGLU())
    for name in found:
        assert found[name].dtype is torch.float32
        assert relative_error(found[name], expected[name]) < 3 * 2**-8, name


def test_rounded_experts_are_those_of_the_definition(device):
    """To the bit, with the gradient of the identity."""
    values = inputs(device, 20, 32, 32, 4, 2)
    chosen = choices(device, 20, 4, 2)
    found = outcome(TritonTraining(), values, chosen, ClampedSwiGLU(), Rounded)
    wide = {name: value.double() for name, value in values.items()}
    for name in ("gate_up", "down"):
        wide[name] = round_trip(values[name]).double()
    expected = outcome(REFERENCE, wide, chosen, ClampedSwiGLU())
    for name in found:
        assert relative_error(found[name], expected[name]) < 2e-6, name


def test_every_number_is_rounded_as_mxfp4_rounds(device):
    spread = torch.exp(4 * normal(40, 96, seed=1))
    weight = normal(40, 96, seed=2) * spread
    weight[0, :32], weight[1, 0], weight[2, :32] = 0.0, 1e-42, 1e-40
    weight[3, :32] = torch.arange(32) / 4  # ties
    weight[4, :2] = torch.tensor([3e38, -3e38])
    found = training_experts.rounded(weight.to(device))
    assert torch.equal(found.cpu(), round_trip(weight))
    weight[0, 3], weight[1, 3] = torch.nan, torch.inf
    assert training_experts.rounded(weight.to(device)).isnan().sum() == 2
