"""The registry: config.json <-> `ModelConfig`, presets, and the location of weights on disk."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.errors import OssiaError, shortened
from ossia.families import gpt2, gpt_oss, qwen3
from ossia.families.mapping import Layout, Row

__all__ = ["PRESETS", "Layout", "Row", "from_hf", "layouts", "preset", "to_hf"]

_FAMILIES = (gpt2, qwen3, gpt_oss)
_BY_MODEL_TYPE = {name: family for family in _FAMILIES for name in family.MODEL_TYPES}

PRESETS: dict[str, ModelConfig] = {**gpt2.PRESETS, **qwen3.PRESETS, **gpt_oss.PRESETS}


def preset(name: str) -> ModelConfig | None:
    """The preset of that name, in upper or lower case; None if there is none."""
    return PRESETS.get(name.lower())


def from_hf(data: dict[str, Any], source: str, ignore_unknown: bool = False) -> ModelConfig:
    """The architecture that a parsed config.json describes; gpt-oss's `original/` is accepted too.

    `source` is the file's name for error messages. Keys that transformers does not read either are
    passed over if they are null or known; `ignore_unknown` passes over all others too, with a
    warning. Raises `OssiaError`, naming file and key, for a key that is unknown, missing,
    unsupported or of the wrong type.
    """
    if not isinstance(data, dict):
        raise OssiaError(f"{source}: must hold a JSON object, not {type(data).__name__}")
    if gpt_oss.is_original(data):
        read = gpt_oss.from_original
    else:
        model_type, supported = data.get("model_type"), ", ".join(_BY_MODEL_TYPE)
        if not isinstance(model_type, str):
            raise OssiaError(f"{source}: missing key 'model_type' (supported: {supported})")
        if model_type not in _BY_MODEL_TYPE:
            shown = shortened(model_type)
            raise OssiaError(f"{source}: key 'model_type' is '{shown}'; supported are {supported}")
        read = _BY_MODEL_TYPE[model_type].from_hf
    try:
        return read(data, source, ignore_unknown)
    except OssiaError:
        raise
    except ValueError as error:  # a part of the config refused a combination of values
        raise OssiaError(f"{source}: {error}") from error


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that transformers loads; `from_hf` reads back the same config.

    Raises `OssiaError` that names, for each family, the first field that it cannot express.
    """
    return _family_of(config).to_hf(config)


def layouts(config: ModelConfig) -> tuple[Layout, ...]:
    """All layouts in which such checkpoints are stored; the first is the one that `save` writes.

    Raises `OssiaError` as `to_hf` does.
    """
    return _family_of(config).layouts(config)


def memory_layout(config: ModelConfig) -> Layout:
    """The layout with the names and shapes of transformers' modules in memory, whose experts are
    dense. Raises `OssiaError` as `to_hf` does.
    """
    dense = with_expert_format(config, ExpertFormat.DENSE)
    return next(layout for layout in layouts(dense) if layout.in_memory)


def _family_of(config: ModelConfig) -> Any:
    obstacles = {}
    for family in _FAMILIES:
        obstacle = _obstacle(family, config)
        if obstacle is None:
            return family
        obstacles[family.MODEL_TYPES[0]] = obstacle
    reasons = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
    raise OssiaError(f"no family's checkpoints can hold this model ({reasons})")


def _obstacle(family: Any, config: ModelConfig) -> str | None:
    """The first field of `config` that a round trip through the family loses, or None."""
    try:
        returned = family.from_hf(family.to_hf(config), "config.json")
    except ValueError as error:
        return str(error)
    return _difference(config, returned, "")


def _difference(wanted: Any, returned: Any, path: str) -> str | None:
    if wanted == returned:
        return None
    if isinstance(wanted, tuple) and len(wanted) == len(returned):
        pairs = [
            (f"{path}[{i}]", *pair) for i, pair in enumerate(zip(wanted, returned, strict=True))
        ]
    elif is_dataclass(wanted) and type(wanted) is type(returned):
        names = [field.name for field in fields(wanted)]
        dot = path and "."
        pairs = [(path + dot + n, getattr(wanted, n), getattr(returned, n)) for n in names]
    else:
        return f"{path} is {wanted!r}, only {returned!r} can be said"
    return next(filter(None, (_difference(w, r, p) for p, w, r in pairs)), None)
