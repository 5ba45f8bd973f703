"""Llama's keys and names, which Qwen3 and gpt-oss share for all but the feed-forward networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ossia.config import AttentionConfig, ModelConfig, RoPE, YaRN
from ossia.families.keys import MAX_CONTEXT, MAX_REPEATS, REQUIRED, Keys, expect, show
from ossia.families.mapping import Row

SLIDING, FULL = "sliding_attention", "full_attention"

MIN_THETA = 2.0  # YaRN divides by its logarithm
MIN_BETA = 1e-3  # and by the rotations


def read_sizes(keys: Keys) -> tuple[int, int]:
    """The hidden size and the number of layers."""
    return keys.integer("hidden_size"), keys.integer("num_hidden_layers", maximum=MAX_REPEATS)


def extended_context(keys: Keys, name: str, yarn: YaRN) -> int:
    """The context that YaRN extends to, by the factor in the key `name`."""
    context = yarn.factor * yarn.original_context
    if context > MAX_CONTEXT:
        raise keys.error(
            name, f"makes a context of {context:g} tokens; at most {MAX_CONTEXT} are supported"
        )
    return int(context)


def read_rope(keys: Keys, context_length: int) -> RoPE:
    """Rotary positions: `rope_theta`, `rope_scaling`, or transformers 5's `rope_parameters`.

    `context_length` is max_position_embeddings, the default of YaRN's original context.
    """
    keys.only("partial_rotary_factor", 1.0)
    scaling = keys.nested("rope_parameters", "rope_scaling") or Keys({}, keys.source)
    scaling.only("partial_rotary_factor", 1.0)
    inner_theta = scaling.number("rope_theta", default=None, minimum=MIN_THETA)
    default = REQUIRED if inner_theta is None else inner_theta
    theta = keys.number("rope_theta", default=default, minimum=MIN_THETA)
    if inner_theta not in (None, theta):
        raise scaling.error(
            "rope_theta", f"is {inner_theta:g}, contradicts 'rope_theta': {theta:g}"
        )
    kind = scaling.text("rope_type", "type", default="default")
    if kind not in ("default", "yarn"):
        name = "rope_type" if "rope_type" in scaling.data else "type"
        raise scaling.error(name, f"is '{kind}'; only 'default' and 'yarn' are supported")
    yarn = _read_yarn(scaling, context_length) if kind == "yarn" else None
    scaling.finish()
    return RoPE(theta, yarn)


def _read_yarn(scaling: Keys, context_length: int) -> YaRN:
    yarn = YaRN(
        factor=scaling.number("factor", minimum=1.0),
        original_context=scaling.integer(
            "original_max_position_embeddings", default=context_length
        ),
        beta_fast=scaling.number("beta_fast", default=32.0, minimum=MIN_BETA),
        beta_slow=scaling.number("beta_slow", default=1.0, minimum=MIN_BETA),
        truncate=scaling.boolean("truncate", default=True),
    )
    # The paper derives the temperature from the factor; a file may repeat it, but not change it.
    expected = 0.1 * math.log(yarn.factor) + 1.0
    given = scaling.number("attention_factor", default=expected)
    if not math.isclose(given, expected, rel_tol=1e-6):
        raise scaling.error(
            "attention_factor", f"is {given:g}; only 0.1 ln(factor) + 1 = {expected:g} is supported"
        )
    return yarn


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
    yield Row("model.embed_tokens.weight", "embedding.weight")
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
        yield Row("lm_head.weight", "unembedding.weight")


def attention_names(attention: AttentionConfig) -> Sequence[str]:
    """Our names of an attention module's parameters, without the layer prefix."""
    kinds = ("weight", "bias") if attention.bias else ("weight",)
    names = [f"{part}.{kind}" for part in "qkvo" for kind in kinds]
    if attention.qk_norm:
        names += ["q_norm.weight", "k_norm.weight"]
    if attention.sinks:
        names.append("sinks")
    return names


def ignored_names(config: ModelConfig) -> tuple[str, ...]:
    """A tied model's file may repeat the embedding as lm_head, like the hub's Qwen3-0.6B."""
    return (r"lm_head\.weight",) if config.tied_embeddings else ()
