"""Frozen experts with low-rank updates against the dense formula and its autograd in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import REFERENCE, Routing
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import LUT, MXFP4, quantize, unpack
from ossia.ops.triton import frozen, frozen_kernels, recording, training_experts
from ossia.ops.triton.launch import CARDS
from ossia.ops.triton.training import TritonTraining
from ossia.ops.values import ExpertWeights
from ossia.ops.weight import tensors_of
from tests.ops.triton import ptx, training_shapes
from tests.ops.triton.common import normal, relative_error, same_kinds
from tests.ops.triton.test_fp4 import stack, words_of
from tests.ops.triton.test_training_experts import choices
from tests.ops.triton.true_shapes import Inputs

SCALE = 0.75


@dataclass(frozen=True)
class Sizes:
    tokens: int
    hidden: int
    inter: int
    experts: int
    chosen: int
    rank: int


# One token; bytes that do not fill a tile; experts without rows, with one, and with many tiles.
SIZES = [Sizes(1, 32, 64, 4, 1, 1), Sizes(7, 96, 32, 4, 2, 3), Sizes(70, 64, 96, 9, 4, 16)]
KINDS = {"mxfp4": quantize, "bfloat16": lambda base: base.to(torch.bfloat16)}


def matrix(device, kind: str, *shape: int, rank: int, seed: int) -> LowRank:
    *lead, rows, cols = shape
    base = KINDS[kind](normal(*shape, seed=seed) * cols**-0.5)
    a = normal(*lead, rank, cols, seed=seed + 1, device=device) * cols**-0.5
    b = normal(*lead, rows, rank, seed=seed + 2, device=device)
    return LowRank(moved(base, device), a, b, SCALE)


def moved(weight: Tensor | MXFP4, device) -> Tensor | MXFP4:
    if isinstance(weight, Tensor):
        return weight.to(device)
    return MXFP4(weight.blocks.to(device), weight.scales.to(device))


def experts_of(device, kind: str, sizes: Sizes, activation, *, bias: bool = True) -> ExpertWeights:
    rows = 2 * sizes.inter, sizes.hidden
    gate_up = matrix(device, kind, sizes.experts, rows[0], sizes.hidden, rank=sizes.rank, seed=10)
    down = matrix(device, kind, sizes.experts, rows[1], sizes.inter, rank=sizes.rank, seed=20)
    biases = [
        normal(sizes.experts, count, seed=30, device=device) if bias else None for count in rows
    ]
    return ExpertWeights(gate_up, biases[0], down, biases[1], activation)


def exact(weight, leaves: dict[str, Tensor], name: str):
    """The sum in float64, of leaves."""
    base = weight.base if isinstance(weight, LowRank) else weight
    dense = (unpack(base, torch.float32) if isinstance(base, MXFP4) else base).double()
    if not isinstance(weight, LowRank):
        return dense
    a, b = (factor.detach().double().requires_grad_() for factor in (weight.a, weight.b))
    leaves |= {f"{name}.a": a, f"{name}.b": b}
    return dense + weight.scale * b @ a


def outcome(backend, experts: ExpertWeights, sizes: Sizes, *, wide: bool) -> dict[str, Tensor]:
    """The result, and the gradients of everything that has one."""
    device = next(iter(tensors_of(experts.down).values())).device
    leaves = {
        "x": normal(sizes.tokens, sizes.hidden, seed=1, device=device),
        "weights": normal(sizes.tokens, sizes.chosen, seed=2, device=device),
        "residual": normal(sizes.tokens, sizes.hidden, seed=3, device=device),
    }
    ids = choices(device, sizes.tokens, sizes.experts, sizes.chosen)
    names = ("gate_up", "down")
    if wide:
        leaves = {name: value.double().requires_grad_() for name, value in leaves.items()}
        found = {name: exact(getattr(experts, name), leaves, name) for name in names}
        bias = {
            f"{name}_bias": None if b is None else b.double()
            for name in names
            for b in [getattr(experts, f"{name}_bias")]
        }
        experts = replace(experts, **found, **bias)
    else:
        leaves = {name: value.requires_grad_() for name, value in leaves.items()}
        for name in names:
            if isinstance(weight := getattr(experts, name), LowRank):
                leaves |= {
                    f"{name}.a": weight.a.requires_grad_(),
                    f"{name}.b": weight.b.requires_grad_(),
                }
    routing = Routing(ids, leaves["weights"])
    out = backend.moe(leaves["x"], routing, experts, residual=leaves["residual"])
    slope = normal(*out.shape, seed=9).to(out)
    gradients = torch.autograd.grad((out * slope).sum(), list(leaves.values()))
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def close(experts: ExpertWeights, sizes: Sizes, error: float) -> dict[str, Tensor]:
    found = outcome(TritonTraining(), experts, sizes, wide=False)
    expected = outcome(REFERENCE, experts, sizes, wide=True)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype is torch.float32
        assert relative_error(found[name], expected[name]) < error, name
    return found


@pytest.fixture(autouse=True)
def never_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("the definition computed a layer")

    monkeypatch.setattr("ossia.ops.training.Training.moe", refuse, raising=False)


@pytest.mark.parametrize(
    ("kind", "sizes", "activation", "bias"),
    [
        ("mxfp4", SIZES[0], SwiGLU(), False),
        ("mxfp4", SIZES[1], ClampedSwiGLU(limit=0.5), True),
        ("mxfp4", SIZES[2], ClampedSwiGLU(), True),
        ("bfloat16", SIZES[1], SwiGLU(), True),
    ],
)
def test_values_and_gradients_are_those_of_the_sum(device, kind, sizes, activation, bias):
    found = close(experts_of(device, kind, sizes, activation, bias=bias), sizes, 3e-6)
    if sizes.experts > 2:  # an expert without tokens
        assert not found["gate_up.a"][1].any()
        assert not found["down.b"][1].any()


@pytest.mark.parametrize("updated", [(True, False), (False, True), (False, False)])
def test_stacks_without_an_update(device, updated):
    sizes = SIZES[1]
    experts = experts_of(device, "mxfp4", sizes, ClampedSwiGLU())
    for name, learns in zip(("gate_up", "down"), updated, strict=True):
        if not learns:
            experts = replace(experts, **{name: getattr(experts, name).base})
    close(experts, sizes, 3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_rounds_and_no_more(device, kind):
    """With an activation without bounds, which rounding would cross."""
    sizes = SIZES[2]
    experts = experts_of(device, kind, sizes, SwiGLU())
    with torch.autocast(device.type, torch.bfloat16):
        found = outcome(TritonTraining(), experts, sizes, wide=False)
    expected = outcome(REFERENCE, experts, sizes, wide=True)
    for name in found:
        assert found[name].dtype is torch.float32
        assert relative_error(found[name], expected[name]) < 6 * 2**-8, name


def packed_products(device, packed: MXFP4, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """x by a stack of one, and slope by its transpose."""
    there = moved(packed, device)
    by_expert = training_experts.sort(torch.zeros(len(x), 1, dtype=torch.int64, device=device), 1)
    out = frozen.products(x.to(device), there, None, by_expert)
    return out.cpu(), frozen.products_turned(slope.to(device), there, by_expert).cpu()


@pytest.mark.parametrize(
    ("experts", "tokens", "rows", "cols"),
    [
        (5, 33, 70, 96),
        pytest.param(32, 2048, 5760, 2880, marks=pytest.mark.gpu),
        pytest.param(128, 2048, 2880, 2880, marks=pytest.mark.gpu),
    ],
)
def test_products_in_bfloat16_round_only_their_results(device, experts, tokens, rows, cols):
    packed = moved(stack(experts, rows, cols, low=118, high=122), device)
    assert isinstance(packed, MXFP4)
    ids = choices(device, tokens, experts, 4)
    by_expert = training_experts.sort(ids, experts)
    x = normal(tokens, cols, seed=1, dtype=torch.bfloat16, device=device)
    out = frozen.products(x, packed, None, by_expert, gather=True)
    turned = frozen.products_turned(out, packed, by_expert)
    assert out.dtype is turned.dtype is torch.bfloat16
    owners = ids.flatten()[by_expert.order]
    for expert in (0, 2, experts - 1):
        own = owners == expert
        dense = unpack(packed[expert], torch.float32)
        source = x[by_expert.order[own] // 4].float()
        assert own.any()
        assert relative_error(out[own], source @ dense.T) < 2**-8
        assert relative_error(turned[own], out[own].float() @ dense) < 2**-8


@pytest.mark.parametrize("cols", [32, 160])
def test_every_code_and_every_scale(device, cols):
    """Also scales whose numbers are subnormal."""
    packed = stack(1, 70, cols, low=0, high=128)
    packed.scales.view(-1)[:2] = torch.tensor([0, 1], dtype=torch.uint8)
    x, slope = normal(5, cols, seed=1), normal(5, 70, seed=2)
    dense = unpack(packed, torch.float32)[0].double()
    out, turned = packed_products(device, packed, x, slope)
    assert relative_error(out, x.double() @ dense.T) < 1e-6
    assert relative_error(turned, slope.double() @ dense) < 1e-6


def test_nan_and_infinity_show_where_they_are_used(device):
    """A scale of NaN in its row and its block, one that overflows, and numbers of one token."""
    packed = stack(1, 40, 64, low=120, high=124)
    packed.scales[0, 3, 1] = 255
    packed.blocks[0, 5, 0], packed.scales[0, 5, 0] = 0x77, 254
    x, slope = normal(6, 64, seed=1).abs(), normal(6, 40, seed=2).abs()
    x[2, 7], x[4, 9], slope[1, 8], slope[3, 11] = torch.nan, torch.inf, torch.nan, -torch.inf
    dense = unpack(packed, torch.float32)[0]
    out, turned = packed_products(device, packed, x, slope)
    assert same_kinds(out, x @ dense.T)
    assert same_kinds(turned, slope @ dense)
    assert out.isfinite().any()
    assert turned[:, :32].isfinite().any() == (slope @ dense)[:, :32].isfinite().any()


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, _, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.bytes = max(self.bytes, tensor.nbytes)
        return made


def test_no_stack_is_ever_unpacked():
    """Forwards and backwards at gpt-oss-20b's shapes, no tensor is as large as a packed stack."""
    inputs = Inputs(torch.device("meta"))
    with recording(CARDS[90]), _Largest() as largest:
        training_shapes.CASES["frozen experts of gpt-oss-20b"](REFERENCE, inputs)
    pairs = 2048 * 4 * 5760  # outputs of the first matrices, in bfloat16
    packed = 32 * 5760 * 2880 // 2  # the largest input
    assert 2 * pairs <= largest.bytes <= packed


def test_assembly_decodes_every_byte():
    every = torch.arange(256, dtype=torch.uint8)
    for first in range(0, 256, 4):
        bytes_ = every[first : first + 4]
        results = ptx.run(frozen_kernels.NUMBERS.value, 4, words_of(bytes_))
        numbers = torch.tensor(np.array(results, dtype=np.uint32).view(np.int32))
        found = numbers.view(torch.bfloat16).double().view(2, 4)
        codes = torch.stack([bytes_ & 15, bytes_ >> 4]).long()
        expected = torch.tensor(LUT, dtype=torch.float64)[codes]
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), codes >= 8)


def test_what_the_kernels_do_not_take(device):
    """Dropout while gradients are computed, and biases or matrices that learn."""
    experts = experts_of(device, "bfloat16", SIZES[1], SwiGLU())
    down, bias = experts.down, experts.down_bias
    assert isinstance(down, LowRank)
    assert isinstance(down.base, Tensor)
    assert bias is not None
    assert frozen.Layer.of(experts) is not None
    dropped = replace(experts, down=replace(down, dropout=0.1))
    assert frozen.Layer.of(dropped) is None
    with torch.no_grad():
        assert frozen.Layer.of(dropped) is not None
    learning = replace(experts, down_bias=bias.clone().requires_grad_())
    assert frozen.Layer.of(learning) is None
    base = down.base.clone().requires_grad_()
    assert frozen.Layer.of(replace(experts, down=replace(down, base=base))) is None
