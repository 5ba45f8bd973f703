"""What a config says, each choice in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ossia.config import (
    GELU,
    AttentionConfig,
    ExpertFormat,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Router,
    SwiGLU,
)
from ossia.insight.units import whole

NONE = "none"
_ROUTERS = {
    Router.TOP_K_THEN_SOFTMAX: "top-{}, then softmax",
    Router.SOFTMAX_THEN_TOP_K: "softmax, then top-{}",
    Router.SOFTMAX_THEN_TOP_K_RENORMALIZED: "softmax, top-{}, renormalised",
}


@dataclass(frozen=True)
class Model:
    """A model to compare, by the name that it is shown under."""

    name: str
    config: ModelConfig


def attentions(config: ModelConfig) -> Counter[AttentionConfig]:
    """Each kind of attention and the number of layers that have it, in order of appearance."""
    return Counter(layer.attention for layer in config.layers)


def networks(config: ModelConfig) -> Counter[MLPConfig | MoEConfig]:
    """Each kind of feed-forward network and the number of layers that have it."""
    return Counter(layer.feedforward for layer in config.layers)


def mixtures(config: ModelConfig) -> list[MoEConfig]:
    return [network for network in networks(config) if isinstance(network, MoEConfig)]


def position(config: ModelConfig) -> str:
    if isinstance(config.position, LearnedPositions):
        return "learned"
    text = f"RoPE, θ {config.position.theta:,.0f}"
    return text + (f", YaRN x{config.position.yarn.factor:g}" if config.position.yarn else "")


def norm(config: ModelConfig) -> str:
    return "LayerNorm" if isinstance(config.norm, LayerNorm) else "RMSNorm"


def heads(config: ModelConfig) -> str:
    return _each(
        attentions(config),
        lambda a: f"{a.num_heads} query, {a.num_kv_heads} KV heads of {a.head_dim}",
    )


def grouping(config: ModelConfig) -> str:
    def words(attention: AttentionConfig) -> str:
        group = attention.num_heads // attention.num_kv_heads
        return "one KV head per query head" if group == 1 else f"{group} query heads per KV head"

    return _each(attentions(config), words)


def pattern(config: ModelConfig) -> str:
    """Where each layer looks."""
    counts: Counter[int | None] = Counter(layer.attention.window for layer in config.layers)
    if len(counts) == 1:
        return _reach(next(iter(counts)))
    return ", ".join(f"{_reach(window)} in {count}" for window, count in counts.items())


def qk_norm(config: ModelConfig) -> str:
    return _yes(any(layer.attention.qk_norm for layer in config.layers), "QK-norm")


def sinks(config: ModelConfig) -> str:
    return _yes(any(layer.attention.sinks for layer in config.layers), "one logit per head")


def bias(config: ModelConfig) -> str:
    return _yes(any(layer.attention.bias for layer in config.layers), "biases")


def activation(config: ModelConfig) -> str:
    def words(network: MLPConfig | MoEConfig) -> str:
        match network.activation:
            case GELU():
                return "GELU"
            case SwiGLU():
                return "SwiGLU"
            case clamped:
                return f"SwiGLU, clamped at {clamped.limit:g}"

    return _each(networks(config), words)


def feedforward(config: ModelConfig) -> str:
    """Experts and their number, or one dense network."""
    return _each(
        networks(config),
        lambda n: (
            f"{n.experts_per_token} of {n.num_experts} experts"
            if isinstance(n, MoEConfig)
            else "one dense network"
        ),
    )


def inner_width(config: ModelConfig) -> str:
    return _each(networks(config), lambda n: whole(n.intermediate_size))


def router(config: ModelConfig) -> str:
    return _each(mixtures(config), lambda m: _ROUTERS[m.router].format(m.experts_per_token)) or NONE


def experts(config: ModelConfig) -> str:
    return _each(mixtures(config), lambda m: f"{m.experts_per_token} of {m.num_experts}") or NONE


def expert_format(config: ModelConfig) -> str:
    """The format of the experts; of a dense model that of all weights."""
    return (
        _each(
            mixtures(config),
            lambda m: "MXFP4" if m.format is ExpertFormat.MXFP4 else config.dtype,
        )
        or config.dtype
    )


def precision(config: ModelConfig) -> str:
    packed = any(moe.format is ExpertFormat.MXFP4 for moe in mixtures(config))
    return f"{config.dtype}, experts in MXFP4" if packed else config.dtype


def unembedding(config: ModelConfig) -> str:
    return "tied to the embedding" if config.tied_embeddings else "weights of its own"


def dropout(config: ModelConfig) -> str:
    found = sorted(set(vars(config.dropout).values()) - {0.0})
    return ", ".join(f"{value:g}" for value in found) or NONE


def shape(config: ModelConfig) -> str:
    return f"{whole(config.hidden_size)} wide, {len(config.layers)} deep"


def _reach(window: int | None) -> str:
    return "full" if window is None else f"window {whole(window)}"


def _yes(present: bool, words: str) -> str:
    return words if present else NONE


def _each(kinds: Iterable, words: Callable) -> str:
    """The words of each kind, once."""
    return " / ".join(dict.fromkeys(words(kind) for kind in kinds))
