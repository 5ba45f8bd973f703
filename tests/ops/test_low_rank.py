"""Low-rank updates beside matrices that stay as they lie: products and gradients in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ossia.ops import frozen, mxfp4, packing
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.rounded import Rounded
from ossia.ops.weight import dense as saved
from tests.ops.flat import reference
from tests.ops.inputs import held

ROWS, COLS, RANK, SCALE = 96, 64, 3, 0.5


@pytest.fixture
def parts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": draw(2, 5, COLS),
        "base": draw(4, ROWS, COLS),
        "a": draw(4, RANK, COLS),
        "b": draw(4, ROWS, RANK),
        "gradient": draw(2, 5, ROWS),
    }


def dense(base: Tensor | MXFP4) -> Tensor:
    return (mxfp4.unpack(base, torch.float32) if isinstance(base, MXFP4) else base).double()


def seen(weight: LowRank, rounded: bool) -> LowRank | Rounded:
    return Rounded(weight) if rounded else weight


def gradients(out: Tensor, gradient: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, of, gradient.to(out.dtype))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", ["mxfp4", "bfloat16", "float32"])
def test_the_product_and_its_gradients(kind: str, rounded: bool, parts, monkeypatch) -> None:
    monkeypatch.setattr(frozen, "_UNPACKED", 10 * COLS)  # the matrix in several pieces
    base = held(parts["base"][0], kind)
    own = [parts[name].clone().requires_grad_() for name in "xab"]
    x, a, b = own[0], own[1][0], own[2][0]
    found = reference.linear(x, seen(LowRank(base, a, b, SCALE), rounded))
    wide = [parts[name].double().requires_grad_() for name in "xab"]
    whole = dense(base) + SCALE * wide[2][0] @ wide[1][0]
    if rounded:
        packed = mxfp4.unpack(mxfp4.quantize(whole.float()), torch.float32).double()
        whole = whole + (packed - whole).detach()
    expected = wide[0] @ whole.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    ours = gradients(found, parts["gradient"], *own)
    theirs = gradients(expected, parts["gradient"], *wide)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", ["mxfp4", "bfloat16", "float32"])
def test_a_bias_does_not_widen_products_under_autocast(kind: str, rounded: bool, parts) -> None:
    """As with a dense matrix: what layers keep is in bfloat16."""
    update = LowRank(held(parts["base"][0], kind), parts["a"][0], parts["b"][0], SCALE)
    bias = parts["gradient"][0, 0]
    exact = reference.linear(parts["x"], seen(update, rounded), bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = reference.linear(parts["x"], seen(update, rounded), bias)
        assert found.dtype is reference.linear(parts["x"], parts["base"][0], bias).dtype
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02 * float(exact.std()))


@pytest.mark.parametrize("kind", ["mxfp4", "bfloat16", "float32"])
def test_autocast_does_not_change_what_is_packed(kind: str, parts) -> None:
    update = LowRank(held(parts["base"][0], kind), parts["a"][0], parts["b"][0], SCALE)
    stack = LowRank(held(parts["base"], kind), parts["a"], parts["b"], SCALE)
    expected, sums = packing.quantize_matrix(update)[0], stack.dense()
    with torch.autocast("cpu", torch.bfloat16):
        found, again = packing.quantize_matrix(update)[0], stack.dense()
    assert torch.equal(found.blocks, expected.blocks)
    assert torch.equal(found.scales, expected.scales)
    assert again.dtype is torch.float32
    assert torch.equal(again, sums)


@pytest.mark.parametrize("kind", ["mxfp4", "bfloat16"])
def test_a_frozen_matrix_lets_the_gradient_through(kind: str, parts) -> None:
    base, x = held(parts["base"][0], kind), parts["x"].clone().requires_grad_()
    out = base.linear(x) if isinstance(base, MXFP4) else frozen.linear(x, base, frozen.cast)
    torch.testing.assert_close(out.double(), x.double() @ dense(base).T, rtol=1e-5, atol=1e-4)
    (found,) = gradients(out, parts["gradient"], x)
    expected = parts["gradient"].double() @ dense(base)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["mxfp4", "float32"])
def test_experts_with_updates_are_experts_of_the_sum(kind: str, parts) -> None:
    """Also the gradients, and experts that no token chose get zeros."""
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(4, COLS, ROWS // 2 // 32 * 32, generator=generator)
    x = parts["x"].flatten(0, 1)
    chosen = torch.randint(3, (10, 2), generator=generator)  # never the last
    weights = torch.rand(10, 2, generator=generator)
    gate_up = parts["base"][:, : 2 * down.shape[2]]
    a, b = (parts[name].clone().requires_grad_() for name in "ab")
    base = held(gate_up, kind)
    update = LowRank(base, a, b[:, : gate_up.shape[1]], SCALE)
    found = reference.moe(x, chosen, weights, update, None, down, None)
    wide_a, wide_b = (parts[name].double().requires_grad_() for name in "ab")
    whole = dense(base) + SCALE * wide_b[:, : gate_up.shape[1]] @ wide_a
    expected = reference.moe(x.double(), chosen, weights.double(), whole, None, down.double(), None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    upstream = torch.randn(found.shape, generator=generator)
    ours = gradients(found, upstream, a, b)
    theirs = gradients(expected, upstream, wide_a, wide_b)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-3, atol=1e-2)
        assert not mine[3].any()


@pytest.mark.parametrize("rounded", [False, True])
def test_dropout_is_of_the_update_and_of_training_only(rounded: bool, parts) -> None:
    x, a, b = (parts[name].clone().requires_grad_() for name in "xab")
    base = parts["base"][0]
    weight = seen(LowRank(base, a[0], b[0], SCALE, dropout=0.5), rounded)
    torch.manual_seed(0)
    trained = reference.linear(x, weight)
    torch.manual_seed(0)
    noise = torch.nn.functional.dropout(torch.ones_like(x), 0.5).double()
    wide = [parts[name].double().requires_grad_() for name in "xab"]
    update = SCALE * wide[2][0] @ wide[1][0]
    expected = wide[0] @ base.double().T + (noise * wide[0]) @ update.T
    whole = base + SCALE * b[0].detach() @ a[0].detach()
    if rounded:  # straight-through: what rounding moves is added, and is not differentiated
        moved = mxfp4.unpack(mxfp4.quantize(whole), torch.float32) - whole
        expected = expected + wide[0] @ moved.double().T
    torch.testing.assert_close(trained.double(), expected, rtol=1e-4, atol=1e-4)
    ours = gradients(trained, parts["gradient"], x, a, b)
    theirs = gradients(expected, parts["gradient"], *wide)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = seen(LowRank(base, a[0], b[0], SCALE), rounded)
        torch.testing.assert_close(reference.linear(x, weight), reference.linear(x, plain))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", ["mxfp4", "float32"])
def test_what_is_saved_is_the_sum_without_a_gradient(kind: str, rounded: bool, parts) -> None:
    base = held(parts["base"], kind)
    a, b = (parts[name].clone().requires_grad_() for name in "ab")
    found = saved(seen(LowRank(base, a, b, SCALE), rounded), 2)
    assert not found.requires_grad
    with torch.no_grad():
        expected = dense(base)[2] + SCALE * b[2].double() @ a[2].double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
