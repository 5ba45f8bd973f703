"""LoRA on a built decoder, from outside: updates of the chosen matrices, experts among them, are
learned while everything else stays as it lies; then merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ossia import checkpoint
from ossia.adapt import quantized
from ossia.config import ExpertFormat, with_expert_format
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.model.linear import Experts, Linear
from ossia.ops import mxfp4
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.training import TRAINING

TARGETS = ("attention", "mlp", "experts")  # and routers, where asked for


@dataclass(frozen=True)
class LoRA:
    """What is learned: of the matrices of `targets` an update of this rank, times alpha / rank."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def load_base(folder: Path) -> Decoder:
    """The model in a checkpoint for training updates of it: its matrices stay in the mapped files
    and experts packed, all else is float32, and nothing requires a gradient.
    """
    stored = checkpoint.load(folder, backend="reference", expert_memory="all")
    kept = {f"{name}.weight" for name, _ in adaptable(stored)}
    weights = {
        name: value.float() if value.is_floating_point() and name not in kept else value
        for name, value in stored.state_dict().items()
    }
    with torch.device("meta"):
        decoder = Decoder(stored.config, TRAINING)
    decoder.load_state_dict(weights, assign=True)
    return decoder.requires_grad_(False)


def attach(decoder: Decoder, settings: LoRA, generator: torch.Generator) -> None:
    """Give each chosen matrix an update of zero, to be trained: a is drawn as `peft` draws it
    (uniform, of variance 1 / (3 cols)), b is zero.
    """
    scale = settings.alpha / settings.rank
    for _, module in adaptable(decoder, settings.targets):
        base = base_of(module)
        *lead, rows, cols = base.shape
        a = torch.empty(*lead, settings.rank, cols)
        a.uniform_(-1 / math.sqrt(cols), 1 / math.sqrt(cols), generator=generator)
        b = torch.zeros(*lead, rows, settings.rank)
        adapt(module, a, b, scale, settings.dropout)
    if not any(updates(decoder)):
        raise OssiaError(f"--targets {','.join(settings.targets)}: the model has none of them")
    widen(decoder)


def widen(decoder: Decoder) -> None:
    """What has no update computes in float32, as all that it meets."""
    for module in decoder.modules():
        if isinstance(module, Linear) and isinstance(module.weight, nn.Parameter):
            module.weight.data = module.weight.data.float()


def adapt(
    module: Linear | Experts, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0
) -> None:
    """Add scale * b @ a to the module's matrix, or matrices; a and b become its parameters."""
    module.lora_a, module.lora_b = nn.Parameter(a), nn.Parameter(b)
    base = base_of(module)
    assert not isinstance(base, LowRank)
    weight = LowRank(base, module.lora_a, module.lora_b, scale, dropout)
    if isinstance(module, Experts):
        module.stored = weight
    elif isinstance(base, Tensor):
        del module.weight
        module.base = base
        module.weight = weight


def adaptable(
    decoder: Decoder, targets: tuple[str, ...] = (*TARGETS, "router")
) -> Iterator[tuple[str, Linear | Experts]]:
    """The matrices that those words mean, by name."""
    for name, module in decoder.named_modules():
        if isinstance(module, Linear | Experts) and _kind(name, module) in targets:
            yield name, module


def _kind(name: str, module: Linear | Experts) -> str:
    """The word for a matrix."""
    if isinstance(module, Experts):
        return "experts"
    *_, parent, part = f"..{name}".split(".")
    if part == "router":
        return "router"
    return {"attention": "attention", "feedforward": "mlp"}.get(parent, "")


def base_of(module: Linear | Experts) -> Tensor | MXFP4 | LowRank:
    """The module's matrix, or its matrices."""
    weight = module.matrices if isinstance(module, Experts) else module.weight
    assert isinstance(weight, Tensor | MXFP4 | LowRank)
    return weight


def updates(decoder: Decoder) -> Iterator[tuple[str, LowRank]]:
    """What is learned, by the name of the module that it belongs to."""
    for name, module in adaptable(decoder):
        weight = base_of(module)
        if isinstance(weight, LowRank):
            yield name, weight


@torch.no_grad()
def merged(
    decoder: Decoder, experts: ExpertFormat, dtype: torch.dtype
) -> tuple[Decoder, dict[str, float]]:
    """The model with its updates added, for inference, and of each stack of experts that was packed
    the relative error of packing.

    One expert at a time is unpacked.
    """
    config = with_expert_format(decoder.config, experts)
    with torch.device("meta"):
        names = Decoder(config).state_dict().keys()
    state = decoder.state_dict()
    weights = {name: value for name, value in state.items() if name in names}
    errors: dict[str, float] = {}
    for name, module in adaptable(decoder):
        weight = base_of(module)
        if not isinstance(module, Experts):
            if isinstance(weight, LowRank):
                weights[f"{name}.weight"] = weight.merged().to(dtype)
        elif experts is ExpertFormat.DENSE:
            stack = [_one(weight, i).to(dtype) for i in range(weight.shape[0])]
            weights[f"{name}.weight"] = torch.stack(stack)
        elif not isinstance(weight, MXFP4):
            packed, errors[name] = quantized.pack(_one(weight, i) for i in range(weight.shape[0]))
            weights[f"{name}.blocks"], weights[f"{name}.scales"] = packed.blocks, packed.scales
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    with torch.device("meta"):
        result = Decoder(config)
    result.load_state_dict(weights, assign=True)
    return result.eval().requires_grad_(False), errors


def _one(stack: Tensor | MXFP4 | LowRank, index: int) -> Tensor:
    """One matrix of a stack, in float32."""
    if isinstance(stack, LowRank):
        return stack.one(index).merged()
    if isinstance(stack, MXFP4):
        return mxfp4.unpack(stack[index], torch.float32)
    return stack[index].float()
