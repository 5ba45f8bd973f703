"""A checkpoint larger than memory: its dense weights are held, its experts read when needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ossia.checkpoint.files import StoredTensor
from ossia.errors import OssiaError
from ossia.families.mapping import Layout
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.offload.store import ExpertStore, StoredExperts, StoredLayer, StoredStack, on_demand
from ossia.system import huge_pages
from ossia.system.memory import available_memory, format_size, parse_size

ALL = "all"  # the `expert_memory` that maps all experts, however large they are

# In the order of a StoredLayer's stacks.
_PARTS = ("gate_up.blocks", "gate_up.scales", "down.blocks", "down.scales")
# Left for keys and values, activations and the program: a share of what is free, or at least this.
_SPARE_SHARE, _SPARE = 0.1, 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How many experts to hold, and where those of each layer lie, in the order of `_PARTS`."""

    slots: int
    layers: Mapping[int, list[StoredTensor]]


def plan(
    expert_memory: int | str | None,
    stored: Mapping[str, StoredTensor],
    layout: Layout,
    device: torch.device,
) -> Plan | None:
    """Whether to read experts on demand: if `expert_memory` says so, or if they do not fit.

    Logs why. Raises OssiaError for a size that holds no expert, and where experts cannot be read
    so.
    """
    if expert_memory == ALL:
        return None
    layers = _packed_layers(stored, layout)
    if not layers or device.type != "cpu":
        if expert_memory is None:
            return None
        here = f"on {device}" if layers else "in this checkpoint"
        raise OssiaError(f"expert_memory is for MXFP4 experts on the CPU; there are none {here}")
    tensors = [tensor for layer in layers.values() for tensor in layer]
    experts = sum(tensor.nbytes for tensor in tensors)
    count = sum(layer[0].shape[0] for layer in layers.values())
    dense = sum(tensor.nbytes for tensor in stored.values()) - experts
    if expert_memory is None:
        free = available_memory()
        if free is None or dense + experts <= free:
            return None
        size = free - dense - max(_SPARE, int(_SPARE_SHARE * free))
        why = f"experts of {format_size(experts)} do not fit the {format_size(free)} that are free"
        if size * count < experts:
            _log.info("experts: %s, nor do the other weights: all are mapped, and slow", why)
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


def hold(weights: dict[str, Tensor]) -> None:
    """Copy dense weights from the mapped file into memory of the process, which the system does not
    drop for want of page cache. Not an embedding that is nothing else: a token needs one row of it.
    """
    tied = "unembedding.weight" not in weights
    for name, weight in weights.items():
        if weight.is_floating_point() and (tied or name != "embedding.weight"):
            weights[name] = huge_pages.zeros(weight.shape, weight.dtype).copy_(weight)


def attach(decoder: Decoder, plan: Plan) -> None:
    """Have the decoder's experts read from their files, and the next layer's guessed ahead."""
    moes = [_moe(decoder, index) for index in plan.layers]
    stored = []
    for tensors, moe in zip(plan.layers.values(), moes, strict=True):
        stacks = [
            StoredStack(tensor.file, tensor.offset, tensor.shape, part.endswith("scales"))
            for tensor, part in zip(tensors, _PARTS, strict=True)
        ]
        gate_up, down = moe.gate_up.bias, moe.down.bias
        biases = None if gate_up is None or down is None else (gate_up, down)
        stored.append(StoredLayer(stacks, biases))
    store = ExpertStore(stored, plan.slots)
    for number, moe in enumerate(moes):
        moe.ops = on_demand(moe.ops)
        for matrices in (moe.gate_up, moe.down):
            matrices.stored = StoredExperts(store, number, matrices.matrices.shape)
    decoder.expert_store = store
    for number, (index, following) in enumerate(pairwise(plan.layers), start=1):
        _guess_ahead(decoder, store, number, index, following)


def _guess_ahead(
    decoder: Decoder, store: ExpertStore, number: int, index: int, following: int
) -> None:
    """Before a layer's experts run, ask the next layer's router which it will probably choose.

    The residual stream changes little from layer to layer, so its router is given what this one is,
    with the next norm's weight in the place of this one's.
    """
    moe, next_moe = _moe(decoder, index), _moe(decoder, following)
    here, there = (
        decoder.get_parameter(f"layers.{i}.feedforward_norm.weight") for i in (index, following)
    )
    ratio = (there.float() / here.float()).nan_to_num(1, 1, 1).to(here.dtype)
    moe.register_forward_pre_hook(partial(_guess, store, number, next_moe, ratio))


def _guess(
    store: ExpertStore,
    number: int,
    next_moe: MoE,
    ratio: Tensor,
    _: nn.Module,
    arguments: tuple[Tensor, ...],
) -> None:
    logits = next_moe.router(arguments[0].flatten(0, -2) * ratio)
    likely = logits.topk(next_moe.config.experts_per_token).indices
    store.guess(number, likely.unique().tolist())


def _moe(decoder: Decoder, index: int) -> MoE:
    moe = decoder.get_submodule(f"layers.{index}.feedforward")
    assert isinstance(moe, MoE)
    return moe


def _packed_layers(
    stored: Mapping[str, StoredTensor], layout: Layout
) -> dict[int, list[StoredTensor]]:
    """By layer, the tensors that are whole stacks of packed matrices."""
    whole = {row.ours: stored[row.theirs] for row in layout.rows if not row.their_index}
    layers: dict[int, list[StoredTensor]] = {}
    for name in whole:
        stem, found, _ = name.partition(_PARTS[0])
        if found:
            layers[int(stem.split(".")[1])] = [whole[stem + part] for part in _PARTS]
    return dict(sorted(layers.items()))
