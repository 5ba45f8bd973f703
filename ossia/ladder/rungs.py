"""The ladder from GPT-2 to gpt-oss: each rung changes one choice of the config below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    Dropout,
    ExpertFormat,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    with_expert_format,
)
from ossia.errors import OssiaError

REACH = 4  # times its training length that every rung can be evaluated at

_HEAD_DIM = 32
_GROUP = 3  # query heads that share a key and value head, from the rung "gqa" on
_EXPERTS, _CHOSEN = 8, 2
_WINDOWS = 4  # windows of a sliding layer in the training length
_MULTIPLE = 96  # the hidden size is one of this: whole groups of heads, whole MXFP4 blocks


@dataclass(frozen=True)
class Rung:
    """One choice: `change` replaces `field`, and nothing else, in any config that has already
    climbed the rungs that it `needs`.

    `field` is a dotted path into a ModelConfig; a path under "layers." applies to every layer.
    `meaning` is the change in one line.
    """

    name: str
    title: str
    meaning: str
    field: str
    change: Callable[[ModelConfig], ModelConfig]
    needs: tuple[str, ...] = ()


def gpt2(*, layers: int, hidden: int, length: int, vocab_size: int) -> ModelConfig:
    """The foot of the ladder: GPT-2's architecture, trained on `length` tokens.

    It has positions for `REACH` times that length, so that it can be evaluated where its vectors
    were never trained. Raises OssiaError for a size that some rung cannot divide.
    """
    for name, value in (("layers", layers), ("length", length)):
        if value < 1:
            raise OssiaError(f"--{name} must be at least 1, not {value}")
    if hidden < 1 or hidden % _MULTIPLE:
        raise OssiaError(f"--hidden must be a multiple of {_MULTIPLE}, not {hidden}")
    heads = hidden // _HEAD_DIM
    layer = LayerConfig(
        AttentionConfig(heads, heads, _HEAD_DIM, bias=True),
        MLPConfig(4 * hidden, GELU(), bias=True),
    )
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        context_length=REACH * length,
        layers=(layer,) * layers,
        position=LearnedPositions(),
        norm=LayerNorm(),
        tied_embeddings=True,
        dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
    )


def _dropout(config: ModelConfig) -> ModelConfig:
    return replace(config, dropout=Dropout())


def _rope(config: ModelConfig) -> ModelConfig:
    return replace(config, position=RoPE(theta=150_000.0))


def _swiglu(config: ModelConfig) -> ModelConfig:
    """Three matrices, each two thirds as large, instead of two."""
    inner = 8 * config.hidden_size // 3
    return _in_layers(
        config, lambda _: {"feedforward": MLPConfig(inner, ClampedSwiGLU(), bias=True)}
    )


def _moe(config: ModelConfig) -> ModelConfig:
    """The chosen experts together are as large as the network that they replace."""

    def mixture(layer: LayerConfig) -> dict[str, object]:
        dense = layer.feedforward
        assert isinstance(dense, MLPConfig)
        assert not isinstance(dense.activation, GELU)
        return {
            "feedforward": MoEConfig(
                num_experts=_EXPERTS,
                experts_per_token=_CHOSEN,
                intermediate_size=dense.intermediate_size // _CHOSEN,
                activation=dense.activation,
                router=Router.TOP_K_THEN_SOFTMAX,
                bias=dense.bias,
            )
        }

    return _in_layers(config, mixture)


def _gqa(config: ModelConfig) -> ModelConfig:
    return _in_attention(config, lambda a, _: {"num_kv_heads": a.num_heads // _GROUP})


def _windows(config: ModelConfig) -> ModelConfig:
    """Every other layer, starting with the first, sees a quarter of the training length."""
    window = max(1, config.context_length // REACH // _WINDOWS)
    return _in_attention(config, lambda _, i: {"window": window if i % 2 == 0 else None})


def _rmsnorm(config: ModelConfig) -> ModelConfig:
    return replace(config, norm=RMSNorm(eps=1e-5, rounding=Rounding.AFTER_WEIGHT))


def _sinks(config: ModelConfig) -> ModelConfig:
    return _in_attention(config, lambda *_: {"sinks": True})


def _mxfp4(config: ModelConfig) -> ModelConfig:
    return with_expert_format(config, ExpertFormat.MXFP4)


FOOT = Rung("gpt2", "GPT-2", "its architecture, at this size", "", lambda config: config)
DROPOUT = Rung("dropout", "No dropout", "0.1 before, 0 from here on", "dropout", _dropout)
ROPE = Rung("rope", "RoPE", "rotary positions for learned ones, theta 150,000", "position", _rope)
SWIGLU = Rung(
    "swiglu",
    "SwiGLU",
    "gpt-oss's clamped SwiGLU for GELU, at two thirds of the width",
    "layers.feedforward",
    _swiglu,
)
MOE = Rung(
    "moe",
    "Mixture of experts",
    f"{_EXPERTS} experts for one network, {_CHOSEN} of them chosen, each half as wide",
    "layers.feedforward",
    _moe,
    needs=(SWIGLU.name,),
)
GQA = Rung(
    "gqa",
    "Grouped queries",
    f"{_GROUP} query heads share a key and value head",
    "layers.attention.num_kv_heads",
    _gqa,
)
WINDOWS = Rung(
    "windows",
    "Sliding windows",
    "every other layer sees a quarter of the training length",
    "layers.attention.window",
    _windows,
)
RMSNORM = Rung("rmsnorm", "RMSNorm", "for LayerNorm", "norm", _rmsnorm)
SINKS = Rung(
    "sinks",
    "Attention sinks",
    "a learned logit a head, which takes its share of each softmax",
    "layers.attention.sinks",
    _sinks,
)
MXFP4 = Rung(
    "mxfp4",
    "MXFP4 experts",
    "rounded to four bits, and seen so in the last quarter of training",
    "layers.feedforward.format",
    _mxfp4,
    needs=(MOE.name,),
)
# From the foot up. gpt-oss also has an unembedding of its own, and YaRN for texts longer than those
# of training; no rung changes these.
RUNGS = (DROPOUT, ROPE, SWIGLU, MOE, GQA, WINDOWS, RMSNORM, SINKS, MXFP4)


def chosen(names: str) -> tuple[Rung, ...]:
    """The rungs in a comma-separated list of names, or "all", in the ladder's order.

    Raises OssiaError for an unknown name, and for a rung without those that it needs.
    """
    if names == "all":
        return RUNGS
    wanted = [name.strip() for name in names.split(",")]
    known = [rung.name for rung in RUNGS]
    for name in wanted:
        if name not in known:
            raise OssiaError(f"--rungs {names}: {name!r} is none of {', '.join(known)}, or all")
    rungs = tuple(rung for rung in RUNGS if rung.name in wanted)
    for rung in rungs:
        for need in rung.needs:
            if need not in wanted:
                raise OssiaError(f"--rungs {names}: {rung.name} needs {need}")
    return rungs


def climb(foot: ModelConfig, rungs: Sequence[Rung]) -> list[tuple[Rung, ModelConfig]]:
    """The foot, then each rung, with its config: that of the rung below with one field replaced."""
    steps = [(FOOT, foot)]
    for rung in rungs:
        steps.append((rung, rung.change(steps[-1][1])))
    return steps


def _in_layers(
    config: ModelConfig, values: Callable[[LayerConfig], dict[str, object]]
) -> ModelConfig:
    layers = tuple(replace(layer, **values(layer)) for layer in config.layers)
    return replace(config, layers=layers)


def _in_attention(
    config: ModelConfig, values: Callable[[AttentionConfig, int], dict[str, object]]
) -> ModelConfig:
    layers = tuple(
        replace(layer, attention=replace(layer.attention, **values(layer.attention, i)))
        for i, layer in enumerate(config.layers)
    )
    return replace(config, layers=layers)
