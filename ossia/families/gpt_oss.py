"""gpt-oss (https://arxiv.org/abs/2508.10925): presets, config.json and weight names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ossia.config import (
    AttentionConfig,
    ClampedSwiGLU,
    Dropout,
    ExpertFormat,
    LayerConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    YaRN,
)
from ossia.families import llama
from ossia.families.keys import (
    GENERIC_IGNORED,
    GENERIC_NEUTRAL,
    MAX_CONTEXT,
    MAX_REPEATS,
    Keys,
    expect,
    read_generic,
    read_quantization,
    write_generic,
)
from ossia.families.mapping import Layout, Row

MODEL_TYPES = ("gpt_oss",)

_ARCHITECTURES = ("GptOssForCausalLM", "GptOssModel")  # the first is the one that is written

IGNORED = (
    *GENERIC_IGNORED,
    # An auxiliary training loss of transformers, which the config does not choose.
    "output_router_logits",
    "router_aux_loss_coef",
    # In files of the hub, but the experts' activation and YaRN's keys are what counts.
    "hidden_act",
    "initial_context_length",
)

NEUTRAL = {
    **GENERIC_NEUTRAL,
    "use_qk_norm": False,
    # What every gpt-oss does, in Qwen's words.
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "use_sliding_window": True,
}

_ASSUMED = {
    "num_hidden_layers": 36,
    "num_experts": 128,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "max_position_embeddings": 131072,
    "num_experts_per_tok": 4,
    "rope_theta": 150000.0,
}
"""What transformers assumes of absent keys."""

_ASSUMED_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}

# The end of an assistant's turn and the padding of the o200k_harmony vocabulary.
_RETURN_ID, _PAD_ID = 200002, 199999


def _layers(
    attention: AttentionConfig, windows: list[int | None], moe: MoEConfig
) -> tuple[LayerConfig, ...]:
    return tuple(
        LayerConfig(replace(attention, window=window, sinks=True), moe) for window in windows
    )


def _alternating(num_layers: int) -> list[str]:
    return [llama.FULL if i % 2 else llama.SLIDING for i in range(num_layers)]


def _windows(kinds: list[str], window: int | None) -> list[int | None]:
    return [window if kind == llama.SLIDING else None for kind in kinds]


def _preset(num_layers: int, num_experts: int) -> ModelConfig:
    attention = AttentionConfig(num_heads=64, num_kv_heads=8, head_dim=64, bias=True)
    moe = MoEConfig(
        num_experts=num_experts,
        experts_per_token=4,
        intermediate_size=2880,
        activation=ClampedSwiGLU(limit=7.0, alpha=1.702),
        router=Router.TOP_K_THEN_SOFTMAX,
        bias=True,
        format=ExpertFormat.MXFP4,
    )
    return ModelConfig(
        vocab_size=201088,
        hidden_size=2880,
        context_length=131072,
        layers=_layers(attention, _windows(_alternating(num_layers), 128), moe),
        position=RoPE(150000.0, YaRN(factor=32.0, original_context=4096, truncate=False)),
        norm=RMSNorm(eps=1e-5, rounding=Rounding.AFTER_WEIGHT),
        eos_ids=(_RETURN_ID,),
        pad_id=_PAD_ID,
    )


PRESETS = {"gpt-oss-20b": _preset(24, 32), "gpt-oss-120b": _preset(36, 128)}


def from_hf(data: dict[str, Any], source: str, ignore_unknown: bool = False) -> ModelConfig:
    keys = Keys(data, source, assumed=_ASSUMED, ignore_unknown=ignore_unknown)
    keys.only("model_type", "gpt_oss")
    packed = read_quantization(keys, supported=("mxfp4",)) is not None
    generic = read_generic(keys, _ARCHITECTURES, dtype="bfloat16", tied=False)
    hidden_size, num_layers = llama.read_sizes(keys)
    attention = AttentionConfig(**llama.read_attention(keys, hidden_size, default_bias=True))
    kinds = llama.read_layer_types(keys, num_layers) or _alternating(num_layers)
    slides = llama.SLIDING in kinds
    window = keys.integer("sliding_window", default=None) if slides else None
    keys.idle("sliding_window")
    if window is None and slides:
        raise keys.error("sliding_window", "is missing, but some layers are sliding")
    context_length = keys.integer("max_position_embeddings", maximum=MAX_CONTEXT)
    plain = data.get("rope_parameters") == {}
    position = llama.read_rope(keys, context_length, {} if plain else _ASSUMED_ROPE)
    config = ModelConfig(
        **generic,
        hidden_size=hidden_size,
        context_length=context_length,
        layers=_layers(attention, _windows(kinds, window), _read_moe(keys, packed)),
        position=position,
        norm=RMSNorm(keys.number("rms_norm_eps", default=1e-5), Rounding.AFTER_WEIGHT),
        dropout=Dropout(attention=keys.number("attention_dropout", default=0.0, maximum=1.0)),
    )
    keys.finish(IGNORED, NEUTRAL)
    return config


def _read_moe(keys: Keys, packed: bool) -> MoEConfig:
    num_experts = keys.integer("num_experts", "num_local_experts", maximum=MAX_REPEATS)
    experts_per_token = keys.integer("num_experts_per_tok", "experts_per_token")
    if experts_per_token > num_experts:
        raise keys.error(
            "num_experts_per_tok", f"{experts_per_token} exceeds {num_experts} experts"
        )
    return MoEConfig(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=keys.integer("intermediate_size"),
        activation=ClampedSwiGLU(
            limit=keys.number("swiglu_limit", default=7.0),
            alpha=keys.number("swiglu_alpha", default=1.702),
        ),
        router=Router.TOP_K_THEN_SOFTMAX,
        bias=True,
        format=ExpertFormat.MXFP4 if packed else ExpertFormat.DENSE,
    )


def is_original(data: dict[str, Any]) -> bool:
    """Whether this is the config.json of `original/`, which does not name a model type."""
    return "model_type" not in data and {"rope_ntk_alpha", "rope_ntk_beta"} <= data.keys()


def from_original(data: dict[str, Any], source: str, ignore_unknown: bool = False) -> ModelConfig:
    """The config of `original/`: some keys, and constants of the reference implementation.

    Source: gpt_oss/torch/model.py in https://github.com/openai/gpt-oss.
    """
    keys = Keys(data, source, ignore_unknown=ignore_unknown)
    hidden_size, num_layers = llama.read_sizes(keys)
    attention = AttentionConfig(**llama.read_attention(keys, hidden_size, default_bias=True))
    windows = _windows(_alternating(num_layers), keys.integer("sliding_window"))
    yarn = YaRN(
        factor=keys.number("rope_scaling_factor", minimum=1.0),
        original_context=keys.integer("initial_context_length"),
        beta_fast=keys.number("rope_ntk_beta", minimum=llama.MIN_BETA),
        beta_slow=keys.number("rope_ntk_alpha", minimum=llama.MIN_BETA),
        truncate=False,
    )
    config = ModelConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        context_length=llama.extended_context(keys, "rope_scaling_factor", yarn),
        layers=_layers(attention, windows, _read_moe(keys, packed=True)),
        position=RoPE(keys.number("rope_theta", minimum=llama.MIN_THETA), yarn),
        norm=RMSNorm(eps=1e-5, rounding=Rounding.AFTER_WEIGHT),
        eos_ids=(_RETURN_ID,),
        pad_id=_PAD_ID,
    )
    keys.finish()
    return config


def to_hf(config: ModelConfig) -> dict[str, Any]:
    moe = expect(config.layers[0].feedforward, MoEConfig, "layers[0].feedforward")
    activation = expect(moe.activation, ClampedSwiGLU, "layers[0].feedforward.activation")
    rope = llama.write_rope(config)
    rope["rope_scaling"] = rope["rope_scaling"] or {"rope_type": "default"}
    data = {
        **write_generic(config, "GptOssForCausalLM", "gpt_oss"),
        **llama.write_attention(config),
        **rope,
        "rms_norm_eps": config.norm.eps,
        "layer_types": llama.layer_types(config),
        # transformers builds a sliding mask even if no layer slides, so it requires a number.
        "sliding_window": llama.first_window(config) or config.context_length,
        "intermediate_size": moe.intermediate_size,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "experts_per_token": moe.experts_per_token,
        "swiglu_limit": activation.limit,
        "swiglu_alpha": activation.alpha,
    }
    if moe.format is ExpertFormat.MXFP4:
        data["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    return data


def layouts(config: ModelConfig) -> tuple[Layout, ...]:
    """Packed experts as on the hub or in `original/`; dense experts as saved by transformers."""
    moe = expect(config.layers[0].feedforward, MoEConfig, "layers[0].feedforward")
    if moe.format is ExpertFormat.DENSE:
        rows = (*llama.backbone_rows(config), *_feedforward_rows(config, _dense_expert_rows))
        return (llama.layout("gpt-oss, dense experts", rows, config, in_memory=True),)
    rows = (*llama.backbone_rows(config), *_feedforward_rows(config, _packed_expert_rows))
    hub = llama.layout("gpt-oss, MXFP4 experts", rows, config)
    if config.tied_embeddings:  # original/ cannot express this
        return (hub,)
    return hub, Layout("gpt-oss, original", tuple(_original_rows(config)))


def _feedforward_rows(config: ModelConfig, expert_rows: Any) -> Iterator[Row]:
    for i in range(len(config.layers)):
        theirs, ours = f"model.layers.{i}.mlp", f"layers.{i}.feedforward"
        for kind in ("weight", "bias"):
            yield Row(f"{theirs}.router.{kind}", f"{ours}.router.{kind}")
        for part in ("gate_up", "down"):
            yield Row(f"{theirs}.experts.{part}_proj_bias", f"{ours}.{part}.bias")
            yield from expert_rows(f"{theirs}.experts.{part}_proj", f"{ours}.{part}")


def _packed_expert_rows(theirs: str, ours: str) -> Iterator[Row]:
    for kind in ("blocks", "scales"):
        yield Row(f"{theirs}_{kind}", f"{ours}.{kind}")


def _dense_expert_rows(theirs: str, ours: str) -> Iterator[Row]:
    """(experts, in, out): the transpose of the packed form."""
    yield Row(theirs, f"{ours}.weight", transpose=True)


def _original_rows(config: ModelConfig) -> Iterator[Row]:
    yield Row("embedding.weight", "embedding.weight")
    for i, layer in enumerate(config.layers):
        theirs, ours = f"block.{i}", f"layers.{i}"
        yield Row(f"{theirs}.attn.norm.scale", f"{ours}.attention_norm.weight")
        yield from _original_attention_rows(f"{theirs}.attn", f"{ours}.attention", layer.attention)
        yield Row(f"{theirs}.mlp.norm.scale", f"{ours}.feedforward_norm.weight")
        for kind in ("weight", "bias"):
            yield Row(f"{theirs}.mlp.gate.{kind}", f"{ours}.feedforward.router.{kind}")
        for name, part in (("mlp1", "gate_up"), ("mlp2", "down")):
            yield Row(f"{theirs}.mlp.{name}_bias", f"{ours}.feedforward.{part}.bias")
            for kind in ("blocks", "scales"):
                yield Row(f"{theirs}.mlp.{name}_weight.{kind}", f"{ours}.feedforward.{part}.{kind}")
    yield Row("norm.scale", "norm.weight")
    yield Row("unembedding.weight", "unembedding.weight")


def _original_attention_rows(theirs: str, ours: str, attention: AttentionConfig) -> Iterator[Row]:
    """One matrix qkv: all rows of q, then of k, then of v."""
    q, kv = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    bounds = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
    for kind in ("weight", "bias") if attention.bias else ("weight",):
        for part, (start, stop) in bounds.items():
            rows = (slice(start, stop),)
            yield Row(f"{theirs}.qkv.{kind}", f"{ours}.{part}.{kind}", their_index=rows)
        yield Row(f"{theirs}.out.{kind}", f"{ours}.o.{kind}")
    yield Row(f"{theirs}.sinks", f"{ours}.sinks")
