"""LoRA updates as files that `peft` loads onto the transformers model, and back.

peft wraps modules. Experts and routers, which are bare parameters in transformers, are wrapped as
parameters (`target_parameters`). For a stack, one matrix each holds the factors of all experts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ossia import families
from ossia.adapt import lora
from ossia.config import ModelConfig
from ossia.errors import OssiaError, shortened
from ossia.model import Decoder
from ossia.ops.low_rank import LowRank
from ossia.system.files import check_regular, read_json
from ossia.system.patterns import exponential

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
GENERATION = "generation_config.json"  # ours: where the adapted model is to stop
_PREFIX = "base_model.model."
_STACKS = ("gate_up_proj", "down_proj")  # of experts, in the order of transformers' modules

# Initialisations that choose a and b only; the others subtract their product from the base, or
# quantize it.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
_READ = frozenset(
    {
        "peft_type",
        "init_lora_weights",
        "bias",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "target_parameters",
    }
)
_IDLE = frozenset(
    {
        # Which matrices have an update, as the tensors' names also show.
        "target_modules",
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "fan_in_fan_out",
        # How the adapter was made and trained.
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)


@dataclass(frozen=True)
class Place:
    """The place of one of our matrices' updates in peft's files.

    module: the path in transformers' model; parameter: the wrapped parameter, None for a module's
    own weight; rows: our rows of their matrix, if it fuses several; fused: their gate rows precede
    their up rows, while ours alternate.
    """

    module: str
    parameter: str | None = None
    rows: slice | None = None
    fused: bool = False
    transposed: bool = False  # a Conv1D, as in GPT-2

    @property
    def target(self) -> str:
        """Its name in peft's config, the same for all layers."""
        parts = [self.module, self.parameter] if self.parameter else [self.module]
        return ".".join(".".join(parts).split(".")[-2 - bool(self.parameter) :])


def places(config: ModelConfig) -> dict[str, Place]:
    """The place of every adaptable matrix, by the name of our module."""
    found: dict[str, Place] = {}
    for row in families.memory_layout(config).rows:
        ours, _, kind = row.ours.rpartition(".")
        if kind != "weight" or not ours.startswith("layers."):
            continue
        part = ours.rpartition(".")[2]
        module = row.theirs.removesuffix(".weight")
        if module == row.theirs:  # a stack that is a parameter
            parent, _, parameter = module.rpartition(".")
            found[ours] = Place(parent, parameter, fused=bool(row.our_index))
        elif part == "router":
            found[ours] = Place(module, "weight")
        elif not part.endswith("norm"):
            rows = row.their_index[0] if row.their_index else None
            assert rows is None or isinstance(rows, slice)
            found[ours] = Place(module, rows=rows, transposed=row.transpose)
    return found


def save(decoder: Decoder, folder: Path, settings: lora.LoRA, base: str) -> None:
    """Write the updates of a decoder into a folder, as `PeftModel.from_pretrained` reads it."""
    where = places(decoder.config)
    groups: dict[tuple[str, str | None], list[tuple[Place, LowRank]]] = {}
    for name, weight in lora.updates(decoder):
        place = where[name]
        groups.setdefault((place.module, place.parameter), []).append((place, weight))
    modules = {parts[0][0].target for (_, parameter), parts in groups.items() if not parameter}
    parameters = {parts[0][0].target for (_, parameter), parts in groups.items() if parameter}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for (module, _), parts in groups.items():
        place = parts[0][0]
        if len(parts) > 1:
            ranks[place.target] = len(parts) * settings.rank
        a, b = _joined(parts)
        inner = _inner(place, sorted(parameters))
        tensors[f"{_PREFIX}{module}.{inner}lora_A.weight"] = a.contiguous()
        tensors[f"{_PREFIX}{module}.{inner}lora_B.weight"] = b.contiguous()
    scale = settings.alpha / settings.rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": {target: scale * rank for target, rank in ranks.items()},
        # peft has no dropout for wrapped parameters; it only matters in training.
        "lora_dropout": 0.0 if parameters else settings.dropout,
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
        "fan_in_fan_out": any(p.transposed for parts in groups.values() for p, _ in parts),
        "bias": "none",
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(decoder: Decoder, folder: Path) -> None:
    """Add the updates in peft's files to a decoder without updates, as `lora.load_base` returns it.

    Raises OssiaError if the files are not a LoRA of this model or use an unsupported feature.
    """
    if not (folder / CONFIG).is_file():
        inner = folder / "adapter"  # of a folder that ossia finetune --lora wrote
        hint = f"; {inner} is" if (inner / CONFIG).is_file() else f": it has no {CONFIG}"
        raise OssiaError(f"{folder} is no adapter{hint}")
    config = read_json(folder / CONFIG)
    _check_config(config, folder / CONFIG)
    tensors = _read_tensors(folder)
    modules = dict(lora.adaptable(decoder))
    targets = [*(config.get("target_parameters") or ())]
    used: set[str] = set()
    for name, place in places(decoder.config).items():
        if place.parameter and not any(target.endswith(place.parameter) for target in targets):
            continue
        stem = f"{_PREFIX}{place.module}.{_inner(place, targets)}"
        keys = f"{stem}lora_A.weight", f"{stem}lora_B.weight"
        if not all(key in tensors for key in keys):
            continue
        used.update(keys)
        shape = modules[name].value.shape
        rank = _of_place(config, "rank_pattern", place, config.get("r", 8))
        a, b = (tensors[key].float() for key in keys)
        factors = _own(place, a, b, shape, rank)
        if factors is None:
            raise OssiaError(
                f"{folder / WEIGHTS}: {keys[0]} is not of this model's sizes and of rank {rank}"
            )
        a, b = (factor.contiguous() for factor in factors)
        lora.adapt(modules[name], a, b, _scale(config, place, rank))
    if unknown := sorted(tensors.keys() - used):
        raise OssiaError(f"{folder / WEIGHTS}: {unknown[0]} belongs to no matrix of this model")
    lora.widen(decoder)


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """Raise OssiaError for whatever would make the result another than base + scale * b @ a."""
    if (kind := config.get("peft_type")) != "LORA":
        raise OssiaError(f"{file}: not a LoRA adapter ({_shown(kind)})")
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or init in _PLAIN_INITS):
        raise OssiaError(
            f"{file}: init_lora_weights {_shown(init)} is not supported, because it changes the "
            "base model's weights: convert the adapter as peft does, by save_pretrained with "
            "path_initial_model_for_weight_conversion"
        )
    if config.get("bias") not in (None, "none"):
        raise OssiaError(f"{file}: bias {_shown(config['bias'])}: trained biases are not supported")
    for key, value in config.items():
        if value and key not in _READ and key not in _IDLE:
            raise OssiaError(f"{file}: {shortened(key)} is not supported ({_shown(value)})")
    numbers = {"r": config.get("r", 8), "lora_alpha": config.get("lora_alpha", 8)}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise OssiaError(f"{file}: {key} must be an object, not {_shown(patterns)}")
        for pattern, value in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise OssiaError(f"{file}: {key} has a bad pattern {_shown(pattern)}") from error
            if (problem := exponential(pattern)) is not None:
                raise OssiaError(
                    f"{file}: {key} has the pattern {_shown(pattern)} with {problem}, which can "
                    "take exponential time"
                )
            numbers[f"{key} {_shown(pattern)}"] = value
    for key, value in numbers.items():
        whole = not key.startswith(("lora_alpha", "alpha"))
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise OssiaError(f"{file}: {key} must be a number, not {_shown(value)}")
        if whole and value < 1:
            raise OssiaError(f"{file}: {key} must be at least 1, not {_shown(value)}")


def _shown(value: object) -> str:
    return shortened(json.dumps(value, default=str))


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    file = folder / WEIGHTS
    pickle = file.with_suffix(".bin")
    if not file.exists() and pickle.exists():
        raise OssiaError(
            f"{pickle}: pickles can run code and are never opened: save the adapter as safetensors"
        )
    try:
        check_regular(file)
        return load_file(file)
    except OssiaError:
        raise
    except Exception as error:  # safetensors has no more specific error
        raise OssiaError(f"{file}: cannot be read ({error})") from error


def _joined(parts: list[tuple[Place, LowRank]]) -> tuple[Tensor, Tensor]:
    """One a and one b in peft's layout, for the parts of a fused matrix or for a stack."""
    place, weight = parts[0]
    if len(parts) > 1:  # each part reads its own rows of a
        parts = sorted(parts, key=lambda part: part[0].rows.start if part[0].rows else 0)
        weights = [weight for _, weight in parts]
        a = torch.cat([weight.a.detach() for weight in weights])
        return a, torch.block_diag(*(weight.b.detach() for weight in weights))
    a, b = weight.a.detach(), weight.b.detach()
    if a.ndim == 2:
        return a, b
    if place.fused:
        b = torch.cat([b[:, 0::2], b[:, 1::2]], dim=1)
    # peft: a (experts * rank, in), b (out, rank * experts); the expert index varies fastest.
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1, 2)


def _own(
    place: Place, a: Tensor, b: Tensor, shape: torch.Size, rank: int
) -> tuple[Tensor, Tensor] | None:
    """The inverse of `_joined` for a matrix or stack of this shape; None if a and b do not fit."""
    *stack, rows, cols = shape
    ranks = math.prod(stack) * rank
    if not a.ndim == b.ndim == 2 or not len(a):
        return None
    if place.rows is not None:
        b = b[place.rows]
    if a.shape != (ranks, cols) or b.shape != (rows, ranks):
        return None
    if not stack:
        return a, b
    a = a.view(-1, rank, cols)
    b = b.view(rows, rank, -1).permute(2, 0, 1)
    if place.fused:
        gate, up = b.chunk(2, dim=1)
        b = torch.stack([gate, up], dim=2).flatten(1, 2)
    return a, b


def _inner(place: Place, targets: Sequence[str]) -> str:
    """The path before lora_A if peft wraps several parameters of one module: the parameter that the
    module defines first is innermost.
    """
    if place.parameter not in _STACKS:
        return ""
    wrapped = [name for name in _STACKS if any(target.endswith(name) for target in targets)]
    return "base_layer." * (len(wrapped) - 1 - wrapped.index(place.parameter))


def _scale(config: Mapping[str, Any], place: Place, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank), by the config for this module."""
    alpha = _of_place(config, "alpha_pattern", place, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_place(config: Mapping[str, Any], patterns: str, place: Place, default: Any) -> Any:
    """The value of the config's first pattern that matches a place."""
    path = f"{place.module}.{place.parameter}" if place.parameter else place.module
    for pattern, value in (config.get(patterns) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default
