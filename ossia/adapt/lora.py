"""LoRA on a built decoder: trains low-rank updates of the chosen matrices, experts included, while
all other weights stay frozen. The updates are applied in `ops/low_rank.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ossia import checkpoint
from ossia.config import ATTENTION_ROLES, EXPERT_ROLES, MLP_ROLES, Role
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.model.linear import Linear, Weighted
from ossia.ops.adapted import Adapted
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.training import for_device
from ossia.ops.weight import tensors_of
from ossia.options import LoadOptions

TARGETS = ("attention", "mlp", "experts")  # and routers, with --train-router

_ROLES = {
    "attention": ATTENTION_ROLES,
    "mlp": MLP_ROLES,
    "experts": EXPERT_ROLES,
    "router": frozenset({Role.ROUTER}),
}


@dataclass(frozen=True)
class LoRA:
    """The updates to train: rank and targets; each update is scaled by alpha / rank."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


TABLES = ("embedding.weight", "unembedding.weight")


def load_base(
    folder: Path, ignore_unknown_keys: bool = False, device: torch.device | None = None
) -> Decoder:
    """A checkpoint's model, ready for updates, on the CPU or on a GPU: matrices stay as they are
    stored, on the CPU in the mapped files, and experts packed; everything else is float32, except a
    GPU's embedding and unembedding; no parameter requires a gradient.
    """
    on_gpu = _on_gpu(device)
    stored = checkpoint.load(
        folder,
        LoadOptions(
            device="cpu",
            backend="reference",
            expert_memory="all",
            ignore_unknown_keys=ignore_unknown_keys,
        ),
    )
    kept = {f"{name}.weight" for name, _ in adaptable(stored)} | set(TABLES if on_gpu else ())
    weights = {
        name: value.float() if value.is_floating_point() and name not in kept else value
        for name, value in stored.state_dict().items()
    }
    ops = for_device(device) if on_gpu and device is not None else Adapted()
    decoder = Decoder.assembled(stored.config, weights, ops).requires_grad_(False)
    return decoder.to(device) if on_gpu else decoder


def _on_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def attach(decoder: Decoder, settings: LoRA, generator: torch.Generator) -> None:
    """Add a trainable update to each chosen matrix, initially zero: a is initialised as in `peft`
    (uniform, of variance 1 / (3 cols)), b is zero.
    """
    scale = settings.alpha / settings.rank
    for _, module in adaptable(decoder, settings.targets):
        *lead, rows, cols = module.value.shape
        a = torch.empty(*lead, settings.rank, cols)
        a.uniform_(-1 / math.sqrt(cols), 1 / math.sqrt(cols), generator=generator)
        b = torch.zeros(*lead, rows, settings.rank)
        adapt(module, a, b, scale, settings.dropout)
    if not any(updates(decoder)):
        raise OssiaError(f"--targets {','.join(settings.targets)}: the model has no such matrices")
    widen(decoder)


def widen(decoder: Decoder) -> None:
    """Convert matrices without an update to float32, the dtype of everything around them; not the
    unembedding, by which the loss multiplies in any dtype.
    """
    for module in decoder.modules():
        if not isinstance(module, Linear) or module.role is Role.UNEMBEDDING:
            continue
        if isinstance(module.value, Tensor):
            module.replace(module.value.detach().float())


def adapt(module: Weighted, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> None:
    """Add scale * b @ a to the module's matrix or stack; a and b become its parameters."""
    base = module.value
    assert isinstance(base, Tensor | MXFP4)
    device = next(iter(tensors_of(base).values())).device
    a, b = a.to(device), b.to(device)
    module.replace(LowRank(base, nn.Parameter(a), nn.Parameter(b), scale, dropout))


def detach(decoder: Decoder) -> None:
    """Remove the updates; the matrices are left as they were stored."""
    for name, weight in [*updates(decoder)]:
        module = decoder.get_submodule(name)
        assert isinstance(module, Weighted)
        module.replace(weight.base)


def adaptable(
    decoder: Decoder, targets: tuple[str, ...] = (*TARGETS, "router")
) -> Iterator[tuple[str, Weighted]]:
    """The modules, by name, whose matrices belong to these targets."""
    roles = frozenset[Role]().union(*(_ROLES[target] for target in targets))
    for name, module in decoder.named_modules():
        if isinstance(module, Weighted) and module.role in roles:
            yield name, module


def updates(decoder: Decoder) -> Iterator[tuple[str, LowRank]]:
    """The updates, by the name of their module."""
    for name, module in adaptable(decoder):
        if isinstance(weight := module.value, LowRank):
            yield name, weight
