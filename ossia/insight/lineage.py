"""The steps from GPT-2 to gpt-oss as claims: what each config says, its cost, its effect.

The cost is the counter's, of the config as it is and, where that says more, of the same config with
that one choice undone. The effect is the ladder's, where it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import (
    AttentionConfig,
    ExpertFormat,
    LearnedPositions,
    ModelConfig,
    MoEConfig,
    with_expert_format,
)
from ossia.insight import facts
from ossia.insight.counts import Part, count, kv_bytes, parameters_by_part
from ossia.insight.facts import Model
from ossia.insight.roofline import experts_touched
from ossia.insight.units import amount, digits, size, whole

_BATCH = 8  # tokens whose experts are counted


@dataclass(frozen=True)
class Claim:
    """One choice. `rung` is its name on the ladder; None if the ladder has no such rung."""

    title: str
    rung: str | None
    fact: Callable[[ModelConfig], str]
    cost: Callable[[ModelConfig], str]


@dataclass(frozen=True)
class Finding:
    """A claim about some models: a fact and a cost of each, and the ladder's effect."""

    title: str
    facts: tuple[str, ...]
    costs: tuple[str, ...]
    effect: str | None

    @property
    def differs(self) -> bool:
        return len(set(self.facts)) > 1


def findings(models: Sequence[Model], effects: Mapping[str, str]) -> list[Finding]:
    """The claims about the models. effects: in words, by the name of the rung."""
    return [
        Finding(
            claim.title,
            tuple(claim.fact(model.config) for model in models),
            tuple(claim.cost(model.config) for model in models),
            None if claim.rung is None else effects.get(claim.rung),
        )
        for claim in CLAIMS
    ]


def _position(config: ModelConfig) -> str:
    table = amount(config.context_length * config.hidden_size)
    if isinstance(config.position, LearnedPositions):
        return f"a table of {table} parameters, which ends at {whole(config.context_length)} tokens"
    return f"no parameters; a table for {whole(config.context_length)} tokens would have {table}"


def _activation(config: ModelConfig) -> str:
    parts = parameters_by_part(config)
    used = sum(parts.get(part, (0, 0))[1] for part in (Part.MLP, Part.EXPERTS))
    matrices = 2 if facts.activation(config) == "GELU" else 3
    return (
        f"{matrices} matrices a network; {amount(used / len(config.layers))} weights used a layer"
    )


def _mixture(config: ModelConfig) -> str:
    parts = parameters_by_part(config)
    if Part.EXPERTS not in parts:
        return f"all of {amount(parts[Part.MLP][0])} weights used by every token"
    total, used = parts[Part.EXPERTS]
    return (
        f"{amount(total)} weights, of which a token uses {amount(used)} ({_percent(used, total)})"
    )


def _grouping(config: ModelConfig) -> str:
    shared = kv_bytes(config, 1)
    alone = kv_bytes(_in_attention(config, lambda a: {"num_kv_heads": a.num_heads}), 1)
    if alone == shared:
        return f"{size(shared)} of keys and values per token"
    return f"{size(shared)} of keys and values per token; ungrouped {size(alone)}"


def _windows(config: ModelConfig) -> str:
    length = config.context_length
    kept, all_ = (
        kv_bytes(config, length),
        kv_bytes(_in_attention(config, lambda _: {"window": None}), length),
    )
    text = f"{size(kept)} of keys and values at {whole(length)} tokens"
    return text if kept == all_ else f"{text}; without windows {size(all_)}"


def _norm(config: ModelConfig) -> str:
    return f"{amount(parameters_by_part(config)[Part.NORM][0])} parameters"


def _sinks(config: ModelConfig) -> str:
    without = _in_attention(config, lambda _: {"sinks": False})
    more = count(config).parameters - count(without).parameters
    return f"{whole(more)} parameters" if more else "no parameters"


def _packing(config: ModelConfig) -> str:
    stored = count(config).checkpoint_bytes
    dense = count(with_expert_format(config, ExpertFormat.DENSE)).checkpoint_bytes
    text = f"a checkpoint of {size(stored)}"
    return text if stored == dense else f"{text}; with experts in {config.dtype} {size(dense)}"


def _shape(config: ModelConfig) -> str:
    ratio = digits(config.hidden_size / len(config.layers))
    return f"{ratio} times as wide as deep; {len(config.layers)} layers one after another"


def _experts(config: ModelConfig) -> str:
    moe = next((n for n in facts.networks(config) if isinstance(n, MoEConfig)), None)
    if moe is None:
        return "nothing to choose"
    stacks = sum(isinstance(layer.feedforward, MoEConfig) for layer in config.layers)
    each = parameters_by_part(config)[Part.EXPERTS][0] / (stacks * moe.num_experts)
    touched = digits(experts_touched(moe, _BATCH))
    return f"{amount(each)} weights an expert; {_BATCH} tokens touch {touched} of {moe.num_experts}"


CLAIMS = (
    Claim("Dropout removed", "dropout", facts.dropout, lambda _: "no parameters; training only"),
    Claim("RoPE for learned positions", "rope", facts.position, _position),
    Claim("SwiGLU for GELU", "swiglu", facts.activation, _activation),
    Claim("Mixture of experts", "moe", facts.feedforward, _mixture),
    Claim("Grouped-query attention", "gqa", facts.grouping, _grouping),
    Claim("Sliding windows", "windows", facts.pattern, _windows),
    Claim("RMSNorm for LayerNorm", "rmsnorm", facts.norm, _norm),
    Claim("Attention sinks", "sinks", facts.sinks, _sinks),
    Claim("MXFP4 experts", "mxfp4", facts.precision, _packing),
    Claim("Width against depth", None, facts.shape, _shape),
    Claim("Number of experts", None, facts.experts, _experts),
)


def _in_attention(
    config: ModelConfig, values: Callable[[AttentionConfig], dict[str, Any]]
) -> ModelConfig:
    layers = tuple(
        replace(layer, attention=replace(layer.attention, **values(layer.attention)))
        for layer in config.layers
    )
    return replace(config, layers=layers)


def _percent(part: float, whole_: float) -> str:
    return f"{100 * part / whole_:.3g} %"
