"""Qwen3, dense and mixture of experts (arxiv.org/abs/2505.09388): presets, config, names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ossia.config import (
    AttentionConfig,
    Dropout,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    SwiGLU,
)
from ossia.families import llama
from ossia.families.keys import (
    GENERIC_IGNORED,
    GENERIC_NEUTRAL,
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_REPEATS,
    MAX_SIZE,
    Keys,
    read_generic,
    read_quantization,
    show,
    write_generic,
)
from ossia.families.mapping import Layout, Row

MODEL_TYPES = ("qwen3", "qwen3_moe")

IGNORED = (
    *GENERIC_IGNORED,
    # An auxiliary training loss of transformers, which the config does not choose.
    "output_router_logits",
    "router_aux_loss_coef",
)

NEUTRAL = {
    **GENERIC_NEUTRAL,
    "use_qk_norm": True,
    # A dense model that is described as a mixture of no experts.
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 0,
    "norm_topk_prob": False,
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "num_local_experts": 0,
}

_ASSUMED = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
"""What transformers assumes of a dense model's absent keys."""

_ASSUMED_MOE = {
    **{name: value for name, value in _ASSUMED.items() if name != "head_dim"},
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_local_experts": 128,
}
"""And of a mixture's."""


def _preset(
    num_layers: int,
    hidden_size: int,
    heads: tuple[int, int],
    feedforward: MLPConfig | MoEConfig,
    tied: bool = False,
) -> ModelConfig:
    """heads: query heads, and key and value heads."""
    attention = AttentionConfig(*heads, head_dim=128, qk_norm=True)
    return ModelConfig(
        vocab_size=151936,
        hidden_size=hidden_size,
        context_length=40960,
        layers=(LayerConfig(attention, feedforward),) * num_layers,
        position=RoPE(1e6),
        norm=RMSNorm(eps=1e-6, rounding=Rounding.BEFORE_WEIGHT),
        tied_embeddings=tied,
        bos_id=151643,
        eos_ids=(151645,),
    )


def _mlp(intermediate_size: int) -> MLPConfig:
    return MLPConfig(intermediate_size, SwiGLU())


def _moe(intermediate_size: int) -> MoEConfig:
    router = Router.SOFTMAX_THEN_TOP_K_RENORMALIZED
    return MoEConfig(128, 8, intermediate_size, SwiGLU(), router)


PRESETS = {
    "qwen3-0.6b": _preset(28, 1024, (16, 8), _mlp(3072), tied=True),
    "qwen3-1.7b": _preset(28, 2048, (16, 8), _mlp(6144), tied=True),
    "qwen3-4b": _preset(36, 2560, (32, 8), _mlp(9728), tied=True),
    "qwen3-8b": _preset(36, 4096, (32, 8), _mlp(12288)),
    "qwen3-14b": _preset(40, 5120, (40, 8), _mlp(17408)),
    "qwen3-32b": _preset(64, 5120, (64, 8), _mlp(25600)),
    "qwen3-30b-a3b": _preset(48, 2048, (32, 4), _moe(768)),
    "qwen3-235b-a22b": _preset(94, 4096, (64, 4), _moe(1536)),
}


def _of_july_2025(name: str, theta: float) -> ModelConfig:
    return replace(PRESETS[name], position=RoPE(theta), context_length=262144)


PRESETS |= {
    "qwen3-4b-2507": _of_july_2025("qwen3-4b", 5e6),
    "qwen3-30b-a3b-2507": _of_july_2025("qwen3-30b-a3b", 1e7),
    "qwen3-235b-a22b-2507": _of_july_2025("qwen3-235b-a22b", 5e6),
}


def from_hf(data: dict[str, Any], source: str, ignore_unknown: bool = False) -> ModelConfig:
    moe = data["model_type"] == "qwen3_moe"
    assumed = _ASSUMED_MOE if moe else _ASSUMED
    keys = Keys(data, source, assumed=assumed, ignore_unknown=ignore_unknown)
    keys.only("model_type", *MODEL_TYPES)
    read_quantization(keys)
    stem = "Qwen3Moe" if moe else "Qwen3"
    generic = read_generic(
        keys, (f"{stem}ForCausalLM", f"{stem}Model"), dtype="bfloat16", tied=False
    )
    keys.only("hidden_act", "silu", "swish")
    hidden_size, num_layers = llama.read_sizes(keys)
    attention = llama.read_attention(keys, hidden_size, default_bias=False)
    windows = _read_windows(keys, num_layers, moe)
    feedforwards = _read_moe(keys, num_layers) if moe else [_read_mlp(keys)] * num_layers
    context_length = keys.integer("max_position_embeddings", maximum=MAX_CONTEXT)
    position = llama.read_rope(keys, context_length, {})
    if position.yarn:
        # The model cards add YaRN to config.json and leave max_position_embeddings unchanged.
        name = "rope_scaling.factor" if keys.data.get("rope_scaling") else "rope_parameters.factor"
        extended = llama.extended_context(keys, name, position.yarn)
        context_length = max(context_length, extended)
    config = ModelConfig(
        **generic,
        hidden_size=hidden_size,
        context_length=context_length,
        layers=tuple(
            LayerConfig(AttentionConfig(**attention, window=window, qk_norm=True), feedforward)
            for window, feedforward in zip(windows, feedforwards, strict=True)
        ),
        position=position,
        norm=RMSNorm(keys.number("rms_norm_eps"), Rounding.BEFORE_WEIGHT),
        dropout=Dropout(attention=keys.number("attention_dropout", default=0.0, maximum=1.0)),
    )
    keys.finish(IGNORED, NEUTRAL)
    return config


def _read_windows(keys: Keys, num_layers: int, moe: bool) -> list[int | None]:
    """The window of each layer.

    A dense model uses the window from layer `max_window_layers` on unless `layer_types` overrides
    it; in a mixture, transformers uses it in all layers or in none.
    """
    sliding = keys.boolean("use_sliding_window", default=False)
    keys.idle("max_window_layers")  # unless it is read below
    window = keys.integer("sliding_window", default=None) if sliding else None
    keys.idle("sliding_window")
    kinds = llama.read_layer_types(keys, num_layers)
    if not sliding or window is None:
        if kinds and llama.SLIDING in kinds:
            raise keys.error(
                "layer_types",
                f"has '{llama.SLIDING}', but no 'sliding_window' is in use",
            )
        return [None] * num_layers
    if moe:
        return [window] * num_layers
    if kinds is None:
        first = keys.integer("max_window_layers", default=28, minimum=-MAX_SIZE)
        kinds = [llama.SLIDING if i >= first else llama.FULL for i in range(num_layers)]
    return [window if kind == llama.SLIDING else None for kind in kinds]


def _read_mlp(keys: Keys) -> MLPConfig:
    return _mlp(keys.integer("intermediate_size"))


def _read_moe(keys: Keys, num_layers: int) -> list[MLPConfig | MoEConfig]:
    """Layer i is dense if in `mlp_only_layers` or `decoder_sparse_step` does not divide i + 1."""
    renormalized = keys.boolean("norm_topk_prob", default=False)
    num_experts = keys.integer("num_local_experts", "num_experts", maximum=MAX_REPEATS)
    if num_layers * num_experts > MAX_EXPERTS:
        raise keys.error(
            "num_experts",
            f"makes {num_layers * num_experts:,} in all; at most {MAX_EXPERTS:,} are supported",
        )
    experts_per_token = keys.integer("num_experts_per_tok")
    if experts_per_token > num_experts:
        raise keys.error(
            "num_experts_per_tok", f"{experts_per_token} exceeds {num_experts} experts"
        )
    moe = MoEConfig(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=keys.integer("moe_intermediate_size"),
        activation=SwiGLU(),
        router=Router.SOFTMAX_THEN_TOP_K_RENORMALIZED
        if renormalized
        else Router.SOFTMAX_THEN_TOP_K,
    )
    step = keys.integer("decoder_sparse_step", default=1)
    dense = keys.items("mlp_only_layers", default=[])
    if not all(type(i) is int for i in dense):
        raise keys.error("mlp_only_layers", f"must hold numbers of layers, not {show(dense)}")
    mlp, dense = _read_mlp(keys), set(dense)
    return [mlp if i in dense or (i + 1) % step else moe for i in range(num_layers)]


def to_hf(config: ModelConfig) -> dict[str, Any]:
    moe = any(isinstance(layer.feedforward, MoEConfig) for layer in config.layers)
    architecture = "Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"
    kinds, window = llama.layer_types(config), llama.first_window(config)
    data = {
        **write_generic(config, architecture, "qwen3_moe" if moe else "qwen3"),
        **llama.write_attention(config),
        **llama.write_rope(config),
        "rms_norm_eps": config.norm.eps,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": len(kinds) if window is None else kinds.index(llama.SLIDING),
        **(_write_moe(config) if moe else _write_mlp(config)),
    }
    if window is not None:
        data["layer_types"] = kinds
    return data


def _write_mlp(config: ModelConfig) -> dict[str, Any]:
    return {"intermediate_size": config.layers[0].feedforward.intermediate_size}


def _write_moe(config: ModelConfig) -> dict[str, Any]:
    networks = [layer.feedforward for layer in config.layers]
    moe = next(network for network in networks if isinstance(network, MoEConfig))
    dense = [i for i, network in enumerate(networks) if isinstance(network, MLPConfig)]
    # Unused if no layer is dense; published files contain the active experts' total width.
    width = (
        networks[dense[0]].intermediate_size
        if dense
        else moe.experts_per_token * moe.intermediate_size
    )
    return {
        "intermediate_size": width,
        "moe_intermediate_size": moe.intermediate_size,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "norm_topk_prob": moe.router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def layouts(config: ModelConfig) -> tuple[Layout, ...]:
    """Names as on the hub; for mixtures also the fused form of transformers' modules."""
    backbone = tuple(llama.backbone_rows(config))
    rows = (*backbone, *_feedforward_rows(config, _expert_rows))
    if not any(isinstance(layer.feedforward, MoEConfig) for layer in config.layers):
        return (llama.layout("Qwen3", rows, config, in_memory=True),)
    fused = (*backbone, *_feedforward_rows(config, _fused_expert_rows))
    in_memory = llama.layout("Qwen3, fused experts", fused, config, in_memory=True)
    return llama.layout("Qwen3", rows, config), in_memory


def _feedforward_rows(config: ModelConfig, expert_rows: Any) -> Iterator[Row]:
    for i, layer in enumerate(config.layers):
        theirs, ours = f"model.layers.{i}.mlp", f"layers.{i}.feedforward"
        if isinstance(layer.feedforward, MoEConfig):
            yield Row(f"{theirs}.gate.weight", f"{ours}.router.weight")
            yield from expert_rows(f"{theirs}.experts", ours, layer.feedforward)
        else:
            for part in ("gate", "up", "down"):
                yield Row(f"{theirs}.{part}_proj.weight", f"{ours}.{part}.weight")


def _expert_rows(theirs: str, ours: str, moe: MoEConfig) -> Iterator[Row]:
    """Gate rows are the even rows of our gate_up, up rows the odd ones."""
    for e in range(moe.num_experts):
        gate, up = (e, slice(0, None, 2)), (e, slice(1, None, 2))
        yield Row(f"{theirs}.{e}.gate_proj.weight", f"{ours}.gate_up.weight", our_index=gate)
        yield Row(f"{theirs}.{e}.up_proj.weight", f"{ours}.gate_up.weight", our_index=up)
        yield Row(f"{theirs}.{e}.down_proj.weight", f"{ours}.down.weight", our_index=(e,))


def _fused_expert_rows(theirs: str, ours: str, moe: MoEConfig) -> Iterator[Row]:
    """One tensor: for each expert all gate rows, then all up rows."""
    every, size = slice(None), moe.intermediate_size
    for half in (0, 1):
        yield Row(
            f"{theirs}.gate_up_proj",
            f"{ours}.gate_up.weight",
            their_index=(every, slice(half * size, (half + 1) * size)),
            our_index=(every, slice(half, None, 2)),
        )
    yield Row(f"{theirs}.down_proj", f"{ours}.down.weight")
