"""GPT-2 (Radford et al. 2019): presets, config.json, and the names of weights in checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ossia.config import (
    GELU,
    AttentionConfig,
    Dropout,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from ossia.families.keys import (
    GENERIC_IGNORED,
    GENERIC_NEUTRAL,
    MAX_CONTEXT,
    MAX_LAYERS,
    Keys,
    expect,
    read_generic,
    read_quantization,
    write_generic,
)
from ossia.families.mapping import HEAD, NO_WEIGHTS, Layout, Row

MODEL_TYPES = ("gpt2",)

_PREFIX = "transformer."
_EMBEDDING = f"{_PREFIX}wte.weight"

# The first is the one that is written.
_ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel")

IGNORED = (
    *GENERIC_IGNORED,
    # In float32 instead of lower precision, as scores and softmax are here always.
    "reorder_and_upcast_attn",
    # The head of GPT2DoubleHeadsModel.
    "summary_activation",
    "summary_first_dropout",
    "summary_last_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    # Left over from the first conversions from TensorFlow.
    "n_special",
    "predict_special_tokens",
    "output_past",
)

NEUTRAL = {**GENERIC_NEUTRAL, "use_qk_norm": False}

_ASSUMED = {
    "vocab_size": 50257,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
"""What transformers assumes of absent keys."""

# Formulas that differ in the order of operations only.
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")


def _preset(num_layers: int, num_heads: int, hidden_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50257,
        hidden_size=hidden_size,
        context_length=1024,
        layers=(_layer(num_heads, hidden_size, 4 * hidden_size),) * num_layers,
        position=LearnedPositions(),
        norm=LayerNorm(eps=1e-5),
        tied_embeddings=True,
        dtype="float32",
        dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
        bos_id=50256,
        eos_ids=(50256,),
    )


def _layer(num_heads: int, hidden_size: int, intermediate_size: int) -> LayerConfig:
    head_dim = hidden_size // num_heads
    return LayerConfig(
        AttentionConfig(num_heads, num_heads, head_dim, bias=True),
        MLPConfig(intermediate_size, GELU(), bias=True),
    )


PRESETS = {
    "gpt2": _preset(12, 12, 768),
    "gpt2-medium": _preset(24, 16, 1024),
    "gpt2-large": _preset(36, 20, 1280),
    "gpt2-xl": _preset(48, 25, 1600),
}


def from_hf(data: dict[str, Any], source: str, ignore_unknown: bool = False) -> ModelConfig:
    keys = Keys(data, source, assumed=_ASSUMED, ignore_unknown=ignore_unknown)
    keys.only("model_type", "gpt2")
    read_quantization(keys)
    generic = read_generic(keys, _ARCHITECTURES, dtype="float32", tied=True)
    keys.only("activation_function", *_TANH_GELU)
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    hidden_size = keys.integer("hidden_size", "n_embd")
    num_heads = keys.integer("num_attention_heads", "n_head")
    if hidden_size % num_heads:
        raise keys.error("n_head", f"{num_heads} does not divide 'n_embd' {hidden_size}")
    layer = _layer(num_heads, hidden_size, keys.integer("n_inner", default=4 * hidden_size))
    config = ModelConfig(
        **generic,
        hidden_size=hidden_size,
        context_length=keys.integer(
            "max_position_embeddings", "n_positions", "n_ctx", default=1024, maximum=MAX_CONTEXT
        ),
        layers=(layer,) * keys.integer("num_hidden_layers", "n_layer", maximum=MAX_LAYERS),
        position=LearnedPositions(),
        norm=LayerNorm(eps=keys.number("layer_norm_epsilon", default=1e-5)),
        dropout=Dropout(
            embedding=keys.number("embd_pdrop", default=0.1, maximum=1.0),
            attention=keys.number("attn_pdrop", default=0.1, maximum=1.0),
            residual=keys.number("resid_pdrop", default=0.1, maximum=1.0),
        ),
    )
    keys.finish(IGNORED, NEUTRAL)
    return config


def to_hf(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    mlp = expect(layer.feedforward, MLPConfig, "layers[0].feedforward")
    return {
        **write_generic(config, "GPT2LMHeadModel", "gpt2"),
        "n_embd": config.hidden_size,
        "n_head": layer.attention.num_heads,
        "n_layer": len(config.layers),
        "n_positions": config.context_length,
        "n_inner": None
        if mlp.intermediate_size == 4 * config.hidden_size
        else mlp.intermediate_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm.eps,
        "embd_pdrop": config.dropout.embedding,
        "attn_pdrop": config.dropout.attention,
        "resid_pdrop": config.dropout.residual,
    }


def layouts(config: ModelConfig) -> tuple[Layout, ...]:
    """Names as saved by `GPT2LMHeadModel`; the hub's checkpoints leave out their prefix."""
    ignored = (
        *NO_WEIGHTS,
        # The causal mask, once a buffer.
        rf"({re.escape(_PREFIX)})?h\.\d+\.attn\.(bias|masked_bias)",
        r"multiple_choice_head\..*",
    )
    tied = {HEAD: _EMBEDDING} if config.tied_embeddings else {}
    rows = tuple(_rows(config))
    return (Layout("GPT-2", rows, ignored, in_memory=True, prefix=_PREFIX, tied=tied),)


def _rows(config: ModelConfig) -> Iterator[Row]:
    yield Row(_EMBEDDING, "embedding.weight")
    yield Row(f"{_PREFIX}wpe.weight", "positions.weight")
    for i in range(len(config.layers)):
        theirs, ours = f"{_PREFIX}h.{i}", f"layers.{i}"
        yield from _pair(f"{theirs}.ln_1", f"{ours}.attention_norm")
        yield from _fused_rows(f"{theirs}.attn.c_attn", f"{ours}.attention", config.hidden_size)
        yield from _pair(f"{theirs}.attn.c_proj", f"{ours}.attention.o", conv1d=True)
        yield from _pair(f"{theirs}.ln_2", f"{ours}.feedforward_norm")
        yield from _pair(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up", conv1d=True)
        yield from _pair(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down", conv1d=True)
    yield from _pair(f"{_PREFIX}ln_f", "norm")
    if not config.tied_embeddings:
        yield Row(HEAD, "unembedding.weight")


def _pair(theirs: str, ours: str, conv1d: bool = False) -> Iterator[Row]:
    """Weight and bias; a Conv1D's weight is stored (in, out)."""
    yield Row(f"{theirs}.weight", f"{ours}.weight", transpose=conv1d)
    yield Row(f"{theirs}.bias", f"{ours}.bias")


def _fused_rows(theirs: str, ours: str, hidden_size: int) -> Iterator[Row]:
    """q, k and v are thirds of one matrix, in this order."""
    for third, part in enumerate("qkv"):
        rows = (slice(third * hidden_size, (third + 1) * hidden_size),)
        yield Row(f"{theirs}.weight", f"{ours}.{part}.weight", transpose=True, their_index=rows)
        yield Row(f"{theirs}.bias", f"{ours}.{part}.bias", their_index=rows)
