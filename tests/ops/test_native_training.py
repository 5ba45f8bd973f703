"""The native training backend against the definition in float64: experts, and a whole step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ossia.config import ClampedSwiGLU, ExpertFormat, SwiGLU, with_expert_format
from ossia.model import Decoder
from ossia.ops import mixture, mxfp4, packing
from ossia.ops.rounded import Rounded, round_trip
from ossia.ops.training import Training, for_device
from ossia.ops.values import ExpertWeights, Routing
from ossia.train.objective import Objective
from ossia.train.runs.presets import PRESETS
from tests.ops.inputs import normal

if packing.native() is None:
    pytest.skip("the native module was not built", allow_module_level=True)

from ossia.ops.cpu import training

NATIVE = for_device(torch.device("cpu"))
EXPERTS, HIDDEN, UNITS, TOKENS = 5, 48, 32, 40


@pytest.fixture
def mixtures(monkeypatch) -> list[Any]:
    """The mixtures that run as one operation, so that a test cannot compare torch with itself."""
    found: list[Any] = []
    run = mixture._Experts.forward

    def counted(ctx: Any, x: Tensor, weights: Tensor, job: Any, *factors: Tensor) -> Tensor:
        found.append(job)
        return run(ctx, x, weights, job, *factors)

    monkeypatch.setattr(mixture._Experts, "forward", staticmethod(counted))
    return found


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("activation", [SwiGLU(), ClampedSwiGLU(2.0, 1.7)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_experts(narrow: bool, activation, biased: bool, rounded: bool, mixtures) -> None:
    hidden = 64 if rounded else HIDDEN  # a multiple of MXFP4's blocks
    shapes = (EXPERTS, 2 * UNITS, hidden), (EXPERTS, hidden, UNITS)
    matrices = [normal(*shape, seed=i) / 5 for i, shape in enumerate(shapes)]
    biases = [normal(*shape[:2], seed=2 + i) for i, shape in enumerate(shapes)] if biased else []
    x, residual, slope = (normal(TOKENS, hidden, seed=i) for i in (4, 5, 6))
    scores, ids = normal(TOKENS, EXPERTS - 1, seed=7).softmax(-1).topk(2)  # one has no tokens

    def outcome(ops: Training, dtype: torch.dtype) -> list[Tensor]:
        leaves = [y.to(dtype, copy=True).requires_grad_() for y in (x, scores, *matrices, *biases)]
        own = leaves[2:4]
        if rounded:
            own = [Rounded(y) if dtype is torch.float32 else seen(y) for y in own]
        first_bias, last_bias = leaves[4:] if biased else (None, None)
        experts = ExpertWeights(own[0], first_bias, own[1], last_bias, activation)
        routing = Routing(ids, leaves[1])
        out = ops.moe(leaves[0], routing, experts, residual=residual.to(dtype))
        return [out, *torch.autograd.grad(out, leaves, slope.to(dtype))]

    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        found = outcome(NATIVE, torch.float32)
        by_torch = outcome(Training(), torch.float32)
    assert len(mixtures) == 1
    exact = outcome(Training(), torch.float64)
    for mine, theirs, true in zip(found, by_torch, exact, strict=True):
        assert mine.dtype is torch.float32
        # In bfloat16 a unit near the limit may be cut off or not.
        narrow_error = max(1.3 * (theirs - true).norm(), 2**-8 * true.norm())
        allowed = narrow_error if narrow else 2e-6 * true.norm()
        assert (mine - true).norm() <= allowed


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_what_is_rounded_is_not_kept(
    narrow: bool, recomputed: bool, mixtures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the backward pass recomputed layers keep no rounded experts, and others keep them in
    the dtype of the products alone.
    """
    made: list[StorageWeakRef] = []

    def watched(weight: Tensor) -> Tensor:
        rounded = round_trip(weight)
        made.append(StorageWeakRef(rounded.untyped_storage()))
        return rounded

    monkeypatch.setattr(training, "round_trip", watched)
    first, last = (
        Rounded(normal(EXPERTS, *shape, seed=0).requires_grad_())
        for shape in ((2 * UNITS, 64), (64, UNITS))
    )
    experts = ExpertWeights(first, None, last, None, SwiGLU())
    scores, ids = normal(TOKENS, EXPERTS, seed=1).softmax(-1).topk(2)

    def layer(x: Tensor) -> Tensor:
        return NATIVE.moe(x, Routing(ids, scores), experts)

    x = normal(TOKENS, 64, seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        out = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
    assert len(made) == 2
    kept = not narrow and not recomputed
    assert [ref.expired() for ref in made] == [not kept] * 2
    out.sum().backward()
    assert len(mixtures) == 1 + recomputed
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("cause", ["units", "no tokens", "float16", "another kind"])
def test_nothing_is_rounded_for_what_is_not_native(
    cause: str, mixtures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's operations round it themselves."""
    made: list[Tensor] = []
    monkeypatch.setattr(training, "round_trip", made.append)
    units = 2 if cause == "units" else 32
    first = Rounded(normal(EXPERTS, 2 * units, 32, seed=0))
    last = normal(EXPERTS, 32, units, seed=1)
    down = mxfp4.quantize(last) if cause == "another kind" else last
    scores, ids = normal(TOKENS, EXPERTS, seed=1).softmax(-1).topk(2)
    x = normal(0 if cause == "no tokens" else TOKENS, 32, seed=2)
    routing = Routing(ids[: len(x)], scores[: len(x)])
    with torch.autocast("cpu", torch.float16, enabled=cause == "float16"):
        out = NATIVE.moe(x, routing, ExpertWeights(first, None, down, None, SwiGLU()))
    assert out.shape == x.shape
    assert not made
    assert not mixtures


def seen(weight: Tensor) -> Tensor:
    """What rounding to MXFP4 makes of a weight in float64, with the gradient of the identity."""
    return weight + (round_trip(weight.detach().float()).double() - weight.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["small-gpt-oss", "small-gpt2", "small-qwen3"])
def test_a_step_of_every_family(name: str, dtype: torch.dtype) -> None:
    """In bfloat16 as far from float64 as autocast of torch's operations, or nearer."""
    config = replace(PRESETS[name], vocab_size=300, layers=PRESETS[name].layers[:2])
    config = with_expert_format(config, ExpertFormat.DENSE)
    tokens = torch.randint(300, (2, 71), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(70) // 30)[None].repeat(2, 1)
    weights = Decoder(config)
    weights.init_weights(torch.Generator().manual_seed(0))

    def gradients(ops: Training, wide: bool = False) -> tuple[float, Tensor]:
        decoder = Decoder(config, ops)
        decoder.load_state_dict(weights.state_dict())
        decoder = decoder.double() if wide else decoder
        objective = Objective(decoder, balance=0.01, z_loss=1e-3).train()
        narrow = dtype is torch.bfloat16 and not wide
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = objective(tokens[:, :-1], tokens[:, 1:], documents, 140)
        losses.total.backward()
        flat = [p.grad.double().flatten() for p in decoder.parameters() if p.grad is not None]
        return float(losses.cross_entropy), torch.cat(flat)

    true_loss, true = gradients(Training(), wide=True)
    loss, found = gradients(NATIVE)
    torch_loss, by_torch = gradients(Training())
    error, by_torch_error = (float((g - true).norm() / true.norm()) for g in (found, by_torch))
    if dtype is torch.float32:
        assert loss == pytest.approx(true_loss, rel=1e-6)
        assert error <= max(2 * by_torch_error, 2e-6)
    else:
        assert abs(loss - true_loss) <= max(1.5 * abs(torch_loss - true_loss), 2e-4 * true_loss)
        assert error <= 1.2 * by_torch_error
