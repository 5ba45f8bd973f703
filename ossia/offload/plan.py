"""Checkpoints larger than memory: dense weights stay in memory, experts are read when needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.offload.experts import Predictor, StoredExperts
from ossia.offload.store import ExpertStore, StoredLayer, StoredStack
from ossia.ops.mxfp4 import MXFP4
from ossia.system import huge_pages
from ossia.system.memory import available_memory, format_size, parse_size

ALL = "all"  # the `expert_memory` that maps all experts, however large they are

# The parts of a layer's experts, in the order of a StoredLayer's stacks.
PARTS = ("gate_up.blocks", "gate_up.scales", "down.blocks", "down.scales")
# Left for keys and values, activations and the program: a share of free memory, and at least this.
_SPARE_SHARE, _SPARE = 0.1, 1 << 30

_log = logging.getLogger(__name__)


PackedLayers = Mapping[int, Sequence[StoredStack]]  # by layer number, in the order of `PARTS`


@dataclass(frozen=True)
class Plan:
    """How many experts to keep in memory, and where each layer's are stored, in `PARTS` order."""

    slots: int
    layers: PackedLayers


def plan(
    expert_memory: int | str | None,
    layers: PackedLayers,
    checkpoint_bytes: int,
    device: torch.device,
) -> Plan | None:
    """A plan to read experts on demand if `expert_memory` is a size or they do not fit; else None.

    Logs the reason. Raises OssiaError if the size holds no expert, or if this device or checkpoint
    does not support reading on demand.
    """
    if expert_memory == ALL:
        return None
    if not layers or device.type != "cpu":
        if expert_memory is None:
            return None
        here = f"on {device}" if layers else "in this checkpoint"
        raise OssiaError(f"expert_memory is for MXFP4 experts on the CPU; there are none {here}")
    experts = sum(stack.nbytes for layer in layers.values() for stack in layer)
    count = sum(layer[0].shape[0] for layer in layers.values())
    dense = checkpoint_bytes - experts
    if expert_memory is None:
        free = available_memory()
        if free is None or dense + experts <= free:
            return None
        size = free - dense - max(_SPARE, int(_SPARE_SHARE * free))
        why = f"experts of {format_size(experts)} do not fit the {format_size(free)} that are free"
        if size * count < experts:
            _log.info("experts: %s, nor do the other weights; all are mapped, which is slow", why)
            return None
    else:
        size = parse_size(expert_memory) if isinstance(expert_memory, str) else expert_memory
        why = "expert_memory is given"
    slots = min(size * count // experts, count)
    if slots < 1:
        raise OssiaError(
            f"an expert takes {format_size(experts / count)}: "
            f"expert_memory {expert_memory} holds none"
        )
    _log.info(
        "experts: read from disk on demand, %d of %d held in %s (%s)",
        slots,
        count,
        format_size(slots * experts / count),
        why,
    )
    return Plan(slots, layers)


def held(name: str, weight: Tensor, tied: bool) -> Tensor:
    """A dense weight in process memory, which the system does not drop when the page cache is
    short; packed experts as they are. An untied embedding stays mapped: a token needs one row of
    it.
    """
    if not weight.is_floating_point() or (name == "embedding.weight" and not tied):
        return weight
    return huge_pages.copy(weight)


def attach(decoder: Decoder, plan: Plan) -> None:
    """Replace the decoder's experts by stored ones, each layer prefetching the next layer's."""
    moes = [_moe(decoder, index) for index in plan.layers]
    layers = []
    for stacks, moe in zip(plan.layers.values(), moes, strict=True):
        gate_up, down = moe.gate_up.bias, moe.down.bias
        biases = None if gate_up is None or down is None else (gate_up, down)
        layers.append(StoredLayer(stacks, biases))
    store = ExpertStore(layers, plan.slots)
    following = [*plan.layers][1:]
    for number, (index, moe) in enumerate(zip(plan.layers, moes, strict=True)):
        last = number == len(following)
        predictor = None if last else _predictor(decoder, index, following[number])
        for part in (moe.gate_up, moe.down):
            mapped = part.value
            assert isinstance(mapped, MXFP4)
            part.replace(StoredExperts(mapped, store, number, predictor))


def _predictor(decoder: Decoder, index: int, following: int) -> Predictor:
    """The predictor of the experts of layer `following` from the input of layer `index`."""
    here, there = (
        decoder.get_parameter(f"layers.{i}.feedforward_norm.weight") for i in (index, following)
    )
    ratio = (there.float() / here.float()).nan_to_num(1, 1, 1).to(here.dtype)
    moe = _moe(decoder, following)
    router = moe.router.value
    assert isinstance(router, Tensor)
    return Predictor(router.detach(), moe.router.bias, ratio.detach(), moe.config.experts_per_token)


def _moe(decoder: Decoder, index: int) -> MoE:
    moe = decoder.get_submodule(f"layers.{index}.feedforward")
    assert isinstance(moe, MoE)
    return moe
