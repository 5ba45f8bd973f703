"""Training's native operations: values and gradients against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import REFERENCE
from ossia.ops.values import Norm, RopeTable
from tests.ops.cpu.common import DTYPES, normal, relative_error

frozen = pytest.importorskip("ossia.ops.cpu.frozen")
gradients = pytest.importorskip("ossia.ops.cpu.gradients")

FEW = settings(max_examples=12)
SIZES = st.sampled_from([1, 3, 31, 64, 200])
ERROR = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


def outcome(function: Callable[..., Tensor], slope: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The function's value, and the gradient of each input by a slope of the value."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        found = torch.autograd.grad(out, leaves, slope.to(out.dtype))
    assert [g.dtype for g in found] == [x.dtype for x in inputs]
    return [out.detach(), *found]


def compare(form, mine: Callable, true: Callable, slope: Tensor, *inputs: Tensor) -> None:
    """Of every result and gradient: as near as its type allows, whatever threads compute it."""
    allowed = max(ERROR[x.dtype] for x in (slope, *inputs))
    for i, (found, expected) in enumerate(pairs(form, mine, true, slope, *inputs)):
        assert (found - expected).norm() <= allowed * expected.norm() + 1e-12, i


def pairs(form, mine: Callable, true: Callable, slope: Tensor, *inputs: Tensor) -> list[Any]:
    """Every result and gradient beside that in float64."""
    exact = outcome(true, slope.double(), *(x.double() for x in inputs))
    flat = form(lambda: torch.cat([x.double().flatten() for x in outcome(mine, slope, *inputs)]))
    found = flat.split([x.numel() for x in exact])
    return [(x.view(y.shape), y) for x, y in zip(found, exact, strict=True)]


@FEW
@given(count=SIZES, rows=st.sampled_from([1, 3, 150]), dtype=DTYPES)
def test_gelu(form, count, rows, dtype):
    x, slope = normal(rows, count, dtype=dtype) * 3, normal(rows, count, seed=1, dtype=dtype)
    compare(form, gradients.gelu, REFERENCE.gelu, slope, x)


@FEW
@given(
    count=SIZES,
    rows=st.sampled_from([1, 150]),
    dtype=DTYPES,
    kind=st.sampled_from([SwiGLU(), ClampedSwiGLU(7.0, 1.702), ClampedSwiGLU(0.5, 1.0)]),
)
def test_gated(form, count, rows, dtype, kind):
    gate, up, slope = (normal(rows, count, seed=i, dtype=dtype) * 2 for i in range(3))

    def mine(gate: Tensor, up: Tensor) -> Tensor:
        return gradients.gated(gate, up, kind)

    compare(form, mine, lambda gate, up: REFERENCE.gated(gate, up, kind), slope, gate, up)


@FEW
@given(
    size=st.sampled_from([7, 31, 64, 200]),  # of two numbers the gradient all but cancels
    rows=st.sampled_from([1, 3, 130, 700]),
    types=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.bfloat16, torch.bfloat16),
        ]
    ),
    biased=st.booleans(),
)
def test_norms(form, size, rows, types, biased):
    wide, narrow = types
    x = normal(rows, size, dtype=wide) + 0.5
    slope = normal(rows, size, seed=1, dtype=narrow)
    weight = [normal(size, seed=2), *([normal(size, seed=3)] if biased else [])]

    def norm_of(weight: Tensor, bias: Tensor | None) -> Norm:
        return Norm(weight, bias, 1e-5, round_before_weight=not biased)

    def mine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return gradients.normalized(x, norm_of(weight, bias), narrow)

    def true(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return REFERENCE.norm(x, norm_of(weight, bias))

    compare(form, mine, lambda *inputs: in_float64(true, *inputs), slope, x, *weight)


def in_float64(true: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition computes RMS norms in float32."""
    if bias is not None:
        return true(x, weight, bias)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


@FEW
@given(
    half=st.sampled_from([1, 16, 32]), length=st.sampled_from([1, 40]), dtype=DTYPES,
    packed=st.booleans(),
)  # fmt: skip
def test_rotation(form, half, length, dtype, packed):
    x, slope = (normal(2, length, 3, 2 * half, seed=i, dtype=dtype) for i in range(2))
    angles = normal(*((2, length) if packed else (length,)), half, seed=2)
    rope = RopeTable(angles.cos(), angles.sin())

    def true(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        cos, sin = rope.cos.unsqueeze(-2).double(), rope.sin.unsqueeze(-2).double()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    compare(form, lambda x: gradients.rotate(x, rope), true, slope, x)


@FEW
@given(
    tokens=st.sampled_from([1, 20, 70, 300]),
    rows=st.sampled_from([1, 40, 130]),
    cols=st.sampled_from([1, 33, 100]),
    biased=st.booleans(),
    added=st.booleans(),
    narrow=st.booleans(),
)
def test_products(form, tokens, rows, cols, biased, added, narrow):
    """Of weights in float32, rounded to bfloat16 as autocast does."""
    dtype = torch.bfloat16 if narrow else torch.float32
    inputs = [normal(tokens, cols, dtype=dtype), normal(rows, cols, seed=1) / cols**0.5]
    inputs += [normal(rows, seed=2)] if biased else []
    inputs += [normal(tokens, rows, seed=3)] if added else []
    slope = normal(tokens, rows, seed=4, dtype=torch.float32 if added else torch.bfloat16)

    def parts(rest: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        return rest[0] if biased else None, rest[-1] if added else None

    def mine(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return gradients.linear(x, weight, *parts(rest), slope.dtype)

    def true(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        bias, residual = parts(rest)
        out = F.linear(x, weight, bias)
        return out if residual is None else out + residual

    for found, expected in pairs(form, mine, true, slope, *inputs):
        assert relative_error(found, expected) <= 2**-6


@FEW
@given(
    counts=st.lists(st.sampled_from([0, 1, 31, 64, 300]), min_size=1, max_size=3).filter(sum),
    rows=st.sampled_from([1, 40, 130]),
    cols=st.sampled_from([1, 70]),
    add=st.booleans(),
)
def test_gradients_of_matrices(form, counts, rows, cols, add):
    """As exact as sums of the bfloat16 numbers in float32 are, nearly."""
    tokens = sum(counts)
    slope, x = (normal(tokens, n, seed=i).bfloat16() for i, n in enumerate((rows, cols)))
    before = normal(len(counts), rows, cols + 1, seed=2)

    def found() -> Tensor:
        weight, bias = before[..., :-1].clone(), before[..., -1].clone()
        frozen.weight_gradient(slope, x, torch.tensor(counts), weight, bias, add=add)
        return torch.cat([weight, bias[..., None]], -1)

    ones = torch.ones(tokens, 1, dtype=torch.float64)
    inputs = torch.cat([x.double(), ones], 1).split(counts)
    each = zip(slope.double().split(counts), inputs, strict=True)
    true = torch.stack([g.T @ y for g, y in each]) + (before if add else 0)
    assert relative_error(form(found), true) <= (2**-7 if form.has_tiles else 1e-3)


@FEW
@given(
    rows=st.sampled_from([1, 5, 40]),
    vocab=st.sampled_from([1, 33, 500, 5000]),
    dtype=DTYPES,
    z_loss=st.sampled_from([0.0, 0.1]),
)
def test_the_loss_and_its_gradient(form, rows, vocab, dtype, z_loss):
    logits = normal(rows, vocab, dtype=dtype) * 4
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(1))
    wide = logits.double().requires_grad_()
    lse = wide.logsumexp(1)
    sums = torch.stack([F.cross_entropy(wide, targets, reduction="sum"), lse.square().sum()])
    with torch.enable_grad():
        lse = wide.logsumexp(1)
        total = F.cross_entropy(wide, targets, reduction="sum") + z_loss * lse.square().sum()
        (slope,) = torch.autograd.grad(total / 7, wide)

    def found(slopes: bool) -> Tensor:
        own = logits.clone()
        losses = frozen.softmax_losses(own, targets, 1 / 7, z_loss, slopes=slopes)
        return torch.cat([losses, own.float().flatten()])

    result = form(found, True)
    torch.testing.assert_close(result[:2].double(), sums.detach(), rtol=2e-6, atol=1e-5)
    error = result[2:].double() - slope.flatten()
    assert error.norm() <= ERROR[dtype] * slope.norm() + 1e-7
    assert torch.equal(form(found, False)[2:], logits.float().flatten())  # unchanged


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_is_no_loss(form, value):
    logits = normal(2, 100)
    logits[1, 50] = value
    losses = form(
        lambda: frozen.softmax_losses(logits.clone(), torch.tensor([3, 4]), 1.0, 0.0, slopes=True)
    )
    assert losses.isnan().all()


def test_a_target_outside_the_vocabulary_is_refused(form):
    with pytest.raises(IndexError, match="targets: 100 is outside the vocabulary"):
        form(
            lambda: frozen.softmax_losses(
                normal(1, 100), torch.tensor([100]), 1.0, 0.0, slopes=False
            )
        )
