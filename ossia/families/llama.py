"""Llama's keys and names, which Qwen3 and gpt-oss share for all but the feed-forward networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ossia.config import AttentionConfig, ModelConfig, RoPE, YaRN
from ossia.families.keys import MAX_CONTEXT, MAX_LAYERS, REQUIRED, Keys, expect, show, warn
from ossia.families.mapping import HEAD, NO_WEIGHTS, Layout, Row

EMBEDDING = "model.embed_tokens.weight"
SLIDING, FULL = "sliding_attention", "full_attention"

MIN_THETA = 2.0  # YaRN divides by its logarithm
MIN_BETA = 1e-3  # and by the rotations
MIN_FACTOR = 1e-3

_YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
_IDLE_ROPE_KEYS = (  # of other kinds of RoPE and of other programs: transformers reads none of them
    "attn_factor",
    "finetuned",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mrope_interleaved",
    "mrope_section",
    "short_factor",
)
_NEUTRAL_ROPE_KEYS = {"extrapolation_factor": 1}

# Older names of the kinds of layers.
_LAYER_TYPES = {"attention": FULL}


def read_sizes(keys: Keys) -> tuple[int, int]:
    """The hidden size and the number of layers."""
    return keys.integer("hidden_size"), keys.integer("num_hidden_layers", maximum=MAX_LAYERS)


def extended_context(keys: Keys, name: str, yarn: YaRN) -> int:
    """The context that YaRN extends to, by the factor in the key `name`."""
    context = yarn.factor * yarn.original_context
    if context > MAX_CONTEXT:
        raise keys.error(
            name, f"makes a context of {context:g} tokens; at most {MAX_CONTEXT} are supported"
        )
    return int(context)


def read_rope(keys: Keys, context_length: int, absent: dict[str, Any]) -> RoPE:
    """Rotary positions: `rope_theta`, `rope_scaling`, or transformers 5's `rope_parameters`.

    `context_length` is max_position_embeddings, the default of YaRN's original context; `absent`
    is the object that transformers assumes if the file has neither.
    """
    keys.only("partial_rotary_factor", 1.0)
    scaling = keys.nested("rope_scaling", "rope_parameters") or Keys(absent, keys.source)
    scaling.only("partial_rotary_factor", 1.0)
    theta = scaling.number("rope_theta", default=None, minimum=MIN_THETA)
    if theta is None:
        theta = keys.number("rope_theta", minimum=MIN_THETA)
    elif (outer := keys.idle("rope_theta")) not in (None, theta):
        warn(
            f"{keys.source}: key 'rope_theta' is {show(outer)} and does not count; "
            f"'{scaling.prefix}rope_theta': {theta:g} does, as in transformers"
        )
    original = keys.integer("original_max_position_embeddings", default=None)
    kind = scaling.text("rope_type", "type", default="default")
    yarn = None
    if kind == "yarn":
        yarn = _read_yarn(scaling, context_length, original)
    elif not _is_plain(kind, scaling):
        name = "rope_type" if "rope_type" in scaling.data else "type"
        raise scaling.error(name, f"is {show(kind)}; only 'default' and 'yarn' are supported")
    scaling.finish(_IDLE_ROPE_KEYS if yarn else (*_IDLE_ROPE_KEYS, *_YARN_KEYS), _NEUTRAL_ROPE_KEYS)
    return RoPE(theta, yarn)


def _is_plain(kind: str, scaling: Keys) -> bool:
    """Whether a kind of RoPE equals the default one up to max_position_embeddings."""
    if kind in ("linear", "proportional"):
        return scaling.number("factor", default=1.0) == 1.0
    return kind in ("default", "dynamic")  # dynamic changes longer texts only


def _read_yarn(scaling: Keys, context_length: int, original: int | None) -> YaRN:
    """`original` is the key outside the object, which takes precedence."""
    inner = scaling.integer("original_max_position_embeddings", default=context_length)
    context = original or inner
    given = "factor" in scaling.data
    factor = scaling.number(
        "factor", default=context_length / context if given else REQUIRED, minimum=MIN_FACTOR
    )
    if scaling.data.get("attn_factor") is not None:
        warn(f"{scaling.source}: key '{scaling.prefix}attn_factor' is ignored, as in transformers")
    return YaRN(
        factor=factor,
        original_context=context,
        beta_fast=scaling.number("beta_fast", default=32.0) or 32.0,  # 0 is the default, too
        beta_slow=scaling.number("beta_slow", default=1.0) or 1.0,
        # null is false to transformers
        truncate=scaling.boolean("truncate", default="truncate" not in scaling.data),
        attention_factor=_read_attention_factor(scaling, factor),
    )


def _read_attention_factor(scaling: Keys, factor: float) -> float | None:
    """The factor on cosines and sines; None if it is the paper's 0.1 ln(factor) + 1.

    DeepSeek's `mscale` and `mscale_all_dim` count if both are there and `attention_factor` is not.
    """

    def paper(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = scaling.number("attention_factor", default=None)
    mscale = scaling.number("mscale", default=None)
    all_dims = scaling.number("mscale_all_dim", default=None)
    if given is None and mscale and all_dims:
        given = paper(mscale) / paper(all_dims)
    return None if given is None or math.isclose(given, paper(1), rel_tol=1e-9) else given


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The older form, two keys, which every version of transformers and all programs read."""
    rope = expect(config.position, RoPE, "position")
    scaling = rope.yarn and {
        "rope_type": "yarn",
        "factor": rope.yarn.factor,
        "original_max_position_embeddings": rope.yarn.original_context,
        "beta_fast": rope.yarn.beta_fast,
        "beta_slow": rope.yarn.beta_slow,
        "truncate": rope.yarn.truncate,
    }
    if scaling and rope.yarn and rope.yarn.attention_factor is not None:
        scaling["attention_factor"] = rope.yarn.attention_factor
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def read_layer_types(keys: Keys, num_layers: int) -> list[str] | None:
    """SLIDING or FULL for each layer, or None if the file relies on the family's rule."""
    kinds = keys.items("layer_types", default=None)
    if kinds is None:
        return None
    if len(kinds) != num_layers:
        raise keys.error(
            "layer_types", f"has {len(kinds)} entries, 'num_hidden_layers' is {num_layers}"
        )
    kinds = [_LAYER_TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise keys.error(
                "layer_types",
                f"has {show(kind)}; only '{SLIDING}' and '{FULL}' are supported",
            )
    return kinds


def layer_types(config: ModelConfig) -> list[str]:
    return [SLIDING if layer.attention.window else FULL for layer in config.layers]


def first_window(config: ModelConfig) -> int | None:
    """The window of the first sliding layer; config.json can express only one."""
    return next((layer.attention.window for layer in config.layers if layer.attention.window), None)


def read_attention(keys: Keys, hidden_size: int, default_bias: bool) -> dict[str, Any]:
    """The fields of `AttentionConfig` that all layers share; head_dim is hidden/heads if absent."""
    num_heads = keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", default=None)
    if head_dim is None:
        if hidden_size % num_heads:
            raise keys.error(
                "num_attention_heads",
                f"{num_heads} does not divide 'hidden_size' {hidden_size}; 'head_dim' is missing",
            )
        head_dim = hidden_size // num_heads
    num_kv_heads = keys.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise keys.error(
            "num_key_value_heads",
            f"{num_kv_heads} does not divide 'num_attention_heads' {num_heads}",
        )
    return {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "bias": keys.boolean("attention_bias", default=default_bias),
    }


def write_attention(config: ModelConfig) -> dict[str, Any]:
    attention = config.layers[0].attention
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "attention_bias": attention.bias,
        "attention_dropout": config.dropout.attention,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
    }


def backbone_rows(config: ModelConfig) -> Iterator[Row]:
    """Rows of embedding, norms, attention and unembedding: all but the feed-forward networks."""
    yield Row(EMBEDDING, "embedding.weight")
    for i, layer in enumerate(config.layers):
        theirs, ours = f"model.layers.{i}", f"layers.{i}"
        yield Row(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        for name in attention_names(layer.attention):
            part, _, suffix = name.partition(".")
            part = f"{part}_proj" if part in ("q", "k", "v", "o") else part
            yield Row(
                f"{theirs}.self_attn.{part}{suffix and '.' + suffix}", f"{ours}.attention.{name}"
            )
        yield Row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feedforward_norm.weight")
    yield Row("model.norm.weight", "norm.weight")
    if not config.tied_embeddings:
        yield Row(HEAD, "unembedding.weight")


def attention_names(attention: AttentionConfig) -> Sequence[str]:
    """Our names of an attention module's parameters, without the layer prefix."""
    kinds = ("weight", "bias") if attention.bias else ("weight",)
    names = [f"{part}.{kind}" for part in "qkvo" for kind in kinds]
    if attention.qk_norm:
        names += ["q_norm.weight", "k_norm.weight"]
    if attention.sinks:
        names.append("sinks")
    return names


def layout(
    name: str, rows: Iterable[Row], config: ModelConfig, *, in_memory: bool = False
) -> Layout:
    """A layout with the names of `backbone_rows`. A tied model's file may repeat the embedding as
    lm_head, like the hub's Qwen3-0.6B, or hold it as lm_head only.
    """
    tied = {HEAD: EMBEDDING} if config.tied_embeddings else {}
    return Layout(name, tuple(rows), NO_WEIGHTS, in_memory, prefix="model.", tied=tied)
