"""Training of low-rank updates by the native kernels: gradients of the dense formula in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import adapted, mxfp4, packing
from ossia.ops.adapted import Adapted
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.training import Training
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import Matrix, Weight
from tests.ops.inputs import held

EXPERTS, HIDDEN, UNITS, RANK, SCALE = 5, 64, 96, 3, 0.5
KINDS = ("mxfp4", "bfloat16", "float32")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def adapted_of(kind: str, *shape: int, dropout: float = 0.0) -> LowRank:
    *stack, rows, cols = shape
    a = torch.randn(*stack, RANK, cols).requires_grad_()
    b = torch.randn(*stack, rows, RANK).requires_grad_()
    return LowRank(held(torch.randn(*shape), kind), a, b, SCALE, dropout)


def exact(weight: Weight, learned: list[Tensor]) -> Tensor:
    """The sum in float64, of leaves that are appended to `learned`."""
    base = weight.base if isinstance(weight, LowRank) else weight
    dense = mxfp4.unpack(base, torch.float32) if isinstance(base, MXFP4) else base
    assert isinstance(dense, Tensor)
    if not isinstance(weight, LowRank):
        return dense.double()
    a, b = (factor.detach().double().requires_grad_() for factor in (weight.a, weight.b))
    learned += [a, b]
    return dense.double() + SCALE * b @ a


def factors(*weights: Weight) -> list[Tensor]:
    return [f for weight in weights if isinstance(weight, LowRank) for f in (weight.a, weight.b)]


def native_runs(monkeypatch) -> list[str]:
    """The native products, one after another."""
    native = packing.native()
    if native is None:
        pytest.skip("the native module was not built")
    runs: list[str] = []
    grouped = native.grouped

    def counted(*arguments: Any, **options: Any) -> Tensor:
        runs.append("turned" if options.get("turned") else "product")
        return grouped(*arguments, **options)

    monkeypatch.setattr(native, "grouped", counted)
    return runs


def close(found: list[Tensor], true: list[Tensor], error: float) -> None:
    for mine, expected in zip(found, true, strict=True):
        assert (mine.double() - expected).norm() <= error * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_matrix(kind: str, narrow: bool, monkeypatch) -> None:
    runs = native_runs(monkeypatch)
    weight, bias = adapted_of(kind, UNITS, HIDDEN), torch.randn(UNITS)
    x, slope = torch.randn(2, 9, HIDDEN).requires_grad_(), torch.randn(2, 9, UNITS)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        out = Adapted().linear(x, weight, bias)
    assert out.dtype is (torch.bfloat16 if narrow else torch.float32)
    found = torch.autograd.grad(out, [x, *factors(weight)], slope.to(out.dtype))
    learned: list[Tensor] = [x.detach().double().requires_grad_()]
    true = learned[0] @ exact(weight, learned).mT + bias
    gradients = torch.autograd.grad(true, learned, slope.double())
    close([out, *found], [true, *gradients], 2e-2 if narrow else 1e-6)
    assert runs == ([] if narrow and kind == "float32" else ["product", "turned"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [SwiGLU(), ClampedSwiGLU(2.0, 1.7)])
@pytest.mark.parametrize("updated", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("biased", [True, False])
def test_experts(kind: str, activation, updated, biased: bool, monkeypatch) -> None:
    runs = native_runs(monkeypatch)
    shapes = (EXPERTS, 2 * UNITS, HIDDEN), (EXPERTS, HIDDEN, UNITS)
    matrices: list[Matrix] = [adapted_of(kind, *shape) for shape in shapes]
    for i, low_rank in enumerate(matrices):
        if not updated[i]:
            matrices[i] = low_rank.base  # type: ignore[union-attr]
    biases = [torch.randn(*shape[:2]) if biased else None for shape in shapes]
    x = torch.randn(40, HIDDEN).requires_grad_()
    weights, ids = torch.randn(40, EXPERTS - 1).softmax(-1).topk(2)  # one expert has no tokens
    weights = weights.detach().requires_grad_()
    experts = ExpertWeights(matrices[0], biases[0], matrices[1], biases[1], activation)
    residual, slope = torch.randn(40, HIDDEN), torch.randn(40, HIDDEN)
    out = Adapted().moe(x, Routing(ids, weights), experts, residual=residual)
    found = torch.autograd.grad(out, [x, weights, *factors(*matrices)], slope)
    learned = [x.detach().double().requires_grad_(), weights.detach().double().requires_grad_()]
    wide = replace(
        experts,
        gate_up=exact(matrices[0], learned),
        down=exact(matrices[1], learned),
        **{
            name: None if bias is None else bias.double()
            for name, bias in zip(("gate_up_bias", "down_bias"), biases, strict=True)
        },
    )
    true = Training().moe(learned[0], Routing(ids, learned[1]), wide) + residual
    close([out, *found], [true, *torch.autograd.grad(true, learned, slope.double())], 2e-6)
    assert runs == ["product", "product", "turned", "turned"]


def test_under_autocast_it_is_as_close_as_torch(monkeypatch) -> None:
    native_runs(monkeypatch)
    shapes = (EXPERTS, 2 * UNITS, HIDDEN), (EXPERTS, HIDDEN, UNITS)
    matrices = [adapted_of("mxfp4", *shape) for shape in shapes]
    x = (torch.randn(60, HIDDEN) / 10).requires_grad_()
    weights, ids = torch.randn(60, EXPERTS).softmax(-1).topk(2)
    experts = ExpertWeights(matrices[0], None, matrices[1], None, SwiGLU())
    slope, learned = torch.randn(60, HIDDEN), [x, *factors(*matrices)]

    def run(ops: Training, enabled: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = ops.moe(x, Routing(ids, weights), experts)
        assert out.dtype is torch.float32
        return [out, *torch.autograd.grad(out, learned, slope)]

    true = run(Training(), False)

    def error(found: list[Tensor]) -> float:
        return sum(
            float(((f - t).norm() / t.norm()).detach()) for f, t in zip(found, true, strict=True)
        )

    assert error(run(Adapted(), True)) <= 1.2 * error(run(Training(), True))


@pytest.mark.parametrize("cause", ["dropout", "double", "no module", "trained bias"])
def test_what_is_not_native_torch_computes(cause: str, monkeypatch) -> None:
    runs = native_runs(monkeypatch)
    dropout = 0.5 if cause == "dropout" else 0.0
    first = adapted_of("mxfp4", EXPERTS, 2 * UNITS, HIDDEN, dropout=dropout)
    last = adapted_of("mxfp4", EXPERTS, HIDDEN, UNITS, dropout=dropout)
    bias = torch.randn(EXPERTS, HIDDEN, requires_grad=cause == "trained bias")
    x = torch.randn(20, HIDDEN).requires_grad_()
    weights, ids = torch.randn(20, EXPERTS).softmax(-1).topk(2)
    experts = ExpertWeights(first, None, last, bias, SwiGLU())
    if cause == "double":
        x, weights = x.double(), weights.double()
        first, last = (replace(w, a=w.a.double(), b=w.b.double()) for w in (first, last))
        experts = replace(experts, gate_up=first, down=last, down_bias=bias.double())
    if cause == "no module":
        monkeypatch.setattr(adapted, "native", lambda: None)

    def run(ops: Training) -> list[Tensor]:
        torch.manual_seed(1)
        out = ops.moe(x, Routing(ids, weights), experts)
        return [out, *torch.autograd.grad(out.sum(), factors(first, last))]

    for mine, expected in zip(run(Adapted()), run(Training()), strict=True):
        assert torch.equal(mine, expected)
    assert not runs
