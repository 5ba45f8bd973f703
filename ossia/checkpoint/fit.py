"""Where a model's weights go, decided before any of them is read: which device, and of a GPU that
cannot hold them all, which layers' experts stay in host memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ossia import ops
from ossia.checkpoint.assemble import parameter_dtypes
from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.model.feedforward import MoE
from ossia.model.linear import Experts
from ossia.offload import placing
from ossia.offload.plan import ALL
from ossia.options import LoadOptions
from ossia.system import gpu
from ossia.system.bandwidth import read_bandwidth
from ossia.system.memory import (
    available_memory,
    device_memory,
    format_size,
    free_memory,
    parse_size,
)

WORKSPACE = 1 << 30  # what a GPU needs at least beside weights: activations, and a few keys

# A step on a GPU cannot be shorter than its kernels' latency: on an H200 some 25 us a layer, even
# of a model whose weights take no time to read.
_LAYER_SECONDS = 25e-6
# A layer whose experts are computed on the host waits twice for the bus.
_VISIT_SECONDS = 50e-6
# The GPU has to be that many times as fast as the CPU to be taken: its kernels are compiled first.
_WORTH = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beside:
    """Bytes for keys and values. least: must be there. wished: what a text as long as the context
    takes, for which experts leave the GPU. holds: says how long a text is that so many bytes hold.
    draft: bytes of a draft model's weights.
    """

    least: int = 0
    wished: int = 0
    holds: Callable[[int], str] | None = None
    draft: int = 0


NOTHING = Beside()


@dataclass(frozen=True)
class Placement:
    """Where a model goes. on_host: the layers whose experts are in host memory. keys: bytes that
    are left on a GPU for keys and values. sends: whether there is room to send a layer's experts to
    the GPU for a large step.
    """

    device: torch.device
    on_host: tuple[int, ...] = ()
    keys: int = 0
    sends: bool = True


@dataclass(frozen=True)
class Needs:
    """The bytes of a model's weights once loaded. experts: by layer. read: of `dense`, those that a
    step reads. chosen: the share of a layer's experts that a token takes, by layer.
    """

    dense: int
    experts: Mapping[int, int]
    read: int
    chosen: Mapping[int, float]
    layers: int

    @classmethod
    def of(cls, decoder: Decoder, dense: torch.dtype) -> Needs:
        """Of a decoder on the meta device, whose dense weights will be of that type."""
        state = decoder.state_dict()
        dtypes = parameter_dtypes(state, dense)
        sizes = {name: x.numel() * dtypes[name].itemsize for name, x in state.items()}
        experts: dict[int, int] = {}
        chosen: dict[int, float] = {}
        for index, layer in enumerate(decoder.layers):
            moe = layer.get_submodule("feedforward")
            if isinstance(moe, MoE):
                stem = f"layers.{index}.feedforward"
                experts[index] = sum(
                    sizes.pop(f"{stem}.{part}.{name}")
                    for part, module in moe.named_children()
                    if isinstance(module, Experts)
                    for name in module.state_dict()
                )
                chosen[index] = moe.config.experts_per_token / moe.config.num_experts
        total = sum(sizes.values())
        tied = decoder.unembedding is None
        looked_up = ("positions.weight",) if tied else ("positions.weight", "embedding.weight")
        read = total - sum(sizes.get(name, 0) for name in looked_up)
        return cls(total, experts, read, chosen, len(decoder.layers))

    @property
    def whole(self) -> int:
        return self.dense + sum(self.experts.values())

    def read_by_token(self, layers: Iterable[int]) -> float:
        """Bytes of the experts that a token takes in these layers."""
        return sum(self.experts[layer] * self.chosen[layer] for layer in layers)


# What a program needs beside a model of that config, whose dense weights have that type.
Asking = Callable[[ModelConfig, torch.dtype], Beside]


def place(
    needs: Needs, options: LoadOptions, target: torch.device, folder: Path, beside: Beside
) -> Placement:
    """Where a model goes: `target`, or the CPU if that is a GPU that was not asked for by name and
    is not the better place; says why. Raises OssiaError, with the bytes that are missing and what
    would fit, for one that was asked for and has too little memory.
    """
    if target.type != "cuda":
        return Placement(target)
    auto = options.device == "auto"
    if auto and (lacking := ops.lacking(target)):
        return _on_cpu(lacking)
    try:
        free, total = free_memory(target), device_memory(target)
    except RuntimeError as error:  # there may be no memory even for what CUDA itself takes
        line = f"{target} cannot be used: {gpu.reason(error)}"
        if auto:
            return _on_cpu(line)
        raise OssiaError(line) from error
    split = _split(needs, options.expert_memory, free, beside)
    missing = split.required - free
    if missing > 0:
        line = (
            f"{split.purposes}, but {format_size(free)} of the "
            f"{format_size(total)} of {target} are free: "
            f"{format_size(missing)} are missing"
        )
        if auto:
            return _on_cpu(line)
        raise OssiaError(f"{folder}: {line}; {_advice(needs, options, free, beside)}")
    if line := _too_much_on_the_host(split.away, target):
        if auto:
            return _on_cpu(line)
        _log.warning("%s: experts are read from disk again and again, which is slow", line)
    if auto:
        slower = _slower(needs, split, target)
        if slower is not None:
            _log.info("device cpu: %s", slower)
            return Placement(torch.device("cpu"))
        _log.info("device %s: the fastest that is here", target)
    left = free - split.required + split.keys
    if not beside.least and left < beside.wished and beside.holds is not None:
        _log.warning(
            "keys and values of a text as long as the context take %s: %s",
            format_size(beside.wished),
            beside.holds(left),
        )
    return Placement(target, split.on_host, left, not split.on_host or split.passing > 0)


@dataclass(frozen=True)
class _Split:
    """A division of the weights. weights, away: bytes on the GPU, and of experts on the host.
    passing: room for a layer's experts that are sent there for a large step. draft: bytes of the
    draft model. keys: those for keys and values.
    """

    on_host: tuple[int, ...]
    weights: int
    away: int
    passing: int
    draft: int
    keys: int

    @property
    def required(self) -> int:
        return self.weights + self.passing + self.draft + WORKSPACE + self.keys

    @property
    def purposes(self) -> str:
        parts = [f"{format_size(self.weights)} of weights"]
        if self.passing:
            parts.append(f"{format_size(self.passing)} for experts that pass through")
        if self.draft:
            parts.append(f"{format_size(self.draft)} of the draft model's")
        if self.keys:
            parts.append(f"{format_size(self.keys)} for keys and values")
        return f"{', '.join(parts)} and {format_size(WORKSPACE)} to compute in"


def _split(needs: Needs, expert_memory: int | str | None, free: int, beside: Beside) -> _Split:
    """As `expert_memory` says; if it is None, as many layers' experts on the GPU as fit."""
    keys, draft, layers = beside.least, beside.draft, needs.experts
    # What arrives, and its layout for the kernels.
    passing = 2 * max(layers.values(), default=0)
    if expert_memory == ALL or not layers:
        near = tuple(layers)
    elif expert_memory is not None:
        size = parse_size(expert_memory) if isinstance(expert_memory, str) else expert_memory
        near = placing.kept(layers, size)
    elif needs.whole + draft + WORKSPACE + keys <= free:
        near = tuple(layers)
    else:
        keys = max(keys, min(beside.wished, free // 8))
        room = free - WORKSPACE - keys - draft - needs.dense
        near = placing.kept(layers, room - passing)
    on_host = tuple(layer for layer in layers if layer not in near)
    away = sum(layers[layer] for layer in on_host)
    split = _Split(on_host, needs.whole - away, away, passing if on_host else 0, draft, keys)
    if split.required > free and not near:  # a small GPU computes no experts
        split = replace(split, passing=0)
        short = max(0, split.required - free)
        split = replace(split, keys=max(beside.least, keys - short))  # a wish is no need
    return split


def _advice(needs: Needs, options: LoadOptions, free: int, beside: Beside) -> str:
    """What would fit, as the end of a line."""
    choices = []
    fitting = _split(needs, None, free, beside)
    if options.expert_memory is not None and fitting.required <= free:
        count = len(fitting.on_host)
        choices.append(f"leave --expert-memory out, for {count} layers' experts in host memory")
    left = free - _split(needs, options.expert_memory, free, NOTHING).required
    if beside.least and left > 0:
        more = "" if beside.holds is None else f", for {beside.holds(left)}"
        choices.append(f"--kv-memory {left / 1e9:.1f}GB{more}")
    if torch.cuda.device_count() > 1:
        choices.append(f"--devices {torch.cuda.device_count()}")
    return ", or ".join([*choices, "free some of its memory, or use --device cpu"])


def check_share(needs: Needs, ranks: int, device: torch.device) -> None:
    """Raise OssiaError if a GPU has no room for what each of so many processes has at least."""
    if device.type != "cuda":
        return
    size, free = needs.whole // ranks, free_memory(device)
    if size + WORKSPACE > free:
        raise OssiaError(
            f"--devices {ranks} needs at least {format_size(size)} of weights and "
            f"{format_size(WORKSPACE)} to compute in on each, but {format_size(free)} are free on "
            f"{device}: {format_size(size + WORKSPACE - free)} are missing"
        )


def _too_much_on_the_host(away: int, target: torch.device) -> str | None:
    free = available_memory()
    if free is None or away <= free:
        return None
    return (
        f"{format_size(away)} of experts do not fit {target}, nor the {format_size(free)} of host "
        "memory that are free"
    )


def _slower(needs: Needs, split: _Split, target: torch.device) -> str | None:
    """Why the CPU is the better place, by the time that a token's weights take to be read; None if
    it is not. `_WORTH` is how many times as fast the GPU must be.
    """
    host, card = read_bandwidth(torch.device("cpu")), read_bandwidth(target)
    near = [layer for layer in needs.experts if layer not in split.on_host]
    away = needs.read_by_token(split.on_host)
    here = (needs.read + needs.read_by_token(near) + away) / host
    there = (needs.read + needs.read_by_token(near)) / card + away / host
    there += needs.layers * _LAYER_SECONDS + len(split.on_host) * _VISIT_SECONDS
    if here >= _WORTH * there:
        return None
    return (
        f"a token should take {here * 1e3:.2g} ms here and {there * 1e3:.2g} ms on {target}, which "
        "is not worth its start; --device cuda takes it all the same"
    )


def _on_cpu(why: str) -> Placement:
    _log.warning("device cpu: %s", why)
    return Placement(torch.device("cpu"))
