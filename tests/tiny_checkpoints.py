"""Tiny checkpoints written name by name as the published ones are, with the safetensors library and
not with ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, LAYERS = 11, 32, 64, 4, 2, 6, 3, 2

GPT_OSS_CONFIG = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "max_position_embeddings": 256,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
    "quantization_config": {"quant_method": "mxfp4"},
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

ORIGINAL_CONFIG = {
    "num_hidden_layers": LAYERS,
    "num_experts": EXPERTS,
    "experts_per_token": 2,
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "swiglu_limit": 7.0,
    "head_dim": HEAD_DIM,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "sliding_window": 4,
    "initial_context_length": 64,
    "rope_theta": 150000,
    "rope_scaling_factor": 4.0,
    "rope_ntk_alpha": 1.0,
    "rope_ntk_beta": 32.0,
}

GPT2_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": VOCAB,
    "n_embd": 12,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 16,
}

QWEN3_MOE_CONFIG = {
    "model_type": "qwen3_moe",
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "moe_intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def deep_gpt_oss(experts: int, layers: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A config and the tensors of more layers, the later ones all alike."""
    tensors = gpt_oss_tensors(experts)
    for name in [name for name in tensors if ".layers.1." in name]:
        for layer in range(2, layers):
            tensors[name.replace(".1.", f".{layer}.")] = tensors[name].clone()
    config = {**GPT_OSS_CONFIG, "num_hidden_layers": layers, "num_local_experts": experts}
    return config, tensors


def gpt_oss_tensors(experts: int = EXPERTS) -> dict[str, torch.Tensor]:
    """In the hub's layout, experts packed."""
    torch.manual_seed(0)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    packed: dict[str, torch.Tensor] = {}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (rows, HIDDEN)
            shapes[f"{layer}.self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, q)
        shapes[f"{layer}.self_attn.o_proj.bias"] = (HIDDEN,)
        shapes[f"{layer}.self_attn.sinks"] = (HEADS,)
        shapes[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}.mlp.router.weight"] = (experts, HIDDEN)
        shapes[f"{layer}.mlp.router.bias"] = (experts,)
        for part, rows, cols in (("gate_up", 2 * INTER, HIDDEN), ("down", HIDDEN, INTER)):
            name = f"{layer}.mlp.experts.{part}_proj"
            shapes[f"{name}_bias"] = (experts, rows)
            size = (experts, rows, cols // 32)
            packed[f"{name}_blocks"] = torch.randint(0, 256, (*size, 16), dtype=torch.uint8)
            packed[f"{name}_scales"] = torch.randint(110, 130, size, dtype=torch.uint8)
    dense = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    return dense | packed


def original_tensors() -> dict[str, torch.Tensor]:
    """The same weights in the layout of gpt-oss's `original/`."""
    hub = gpt_oss_tensors()
    tensors = {
        "embedding.weight": hub["model.embed_tokens.weight"],
        "norm.scale": hub["model.norm.weight"],
        "unembedding.weight": hub["lm_head.weight"],
    }
    for i in range(LAYERS):
        theirs, block = f"model.layers.{i}", f"block.{i}"
        for kind in ("weight", "bias"):
            parts = [hub[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
            tensors[f"{block}.attn.out.{kind}"] = hub[f"{theirs}.self_attn.o_proj.{kind}"]
            tensors[f"{block}.mlp.gate.{kind}"] = hub[f"{theirs}.mlp.router.{kind}"]
        tensors[f"{block}.attn.sinks"] = hub[f"{theirs}.self_attn.sinks"]
        tensors[f"{block}.attn.norm.scale"] = hub[f"{theirs}.input_layernorm.weight"]
        tensors[f"{block}.mlp.norm.scale"] = hub[f"{theirs}.post_attention_layernorm.weight"]
        for number, part in ((1, "gate_up"), (2, "down")):
            experts = f"{theirs}.mlp.experts.{part}_proj"
            tensors[f"{block}.mlp.mlp{number}_bias"] = hub[f"{experts}_bias"]
            for kind in ("blocks", "scales"):
                tensors[f"{block}.mlp.mlp{number}_weight.{kind}"] = hub[f"{experts}_{kind}"]
    return tensors


def gpt2_tensors(prefix: str = "") -> dict[str, torch.Tensor]:
    """As on the hub: matrices are (in, out), and the causal mask is among the tensors."""
    torch.manual_seed(0)
    hidden = GPT2_CONFIG["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCAB, hidden),
        "wpe.weight": (GPT2_CONFIG["n_positions"], hidden),
        "ln_f.weight": (hidden,),
        "ln_f.bias": (hidden,),
    }
    for i in range(GPT2_CONFIG["n_layer"]):
        for part, size in (
            ("attn.c_attn", (hidden, 3 * hidden)),
            ("attn.c_proj", (hidden, hidden)),
            ("mlp.c_fc", (hidden, 4 * hidden)),
            ("mlp.c_proj", (4 * hidden, hidden)),
        ):
            shapes[f"h.{i}.{part}.weight"] = size
            shapes[f"h.{i}.{part}.bias"] = size[1:]
        for part in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{part}.weight"] = shapes[f"h.{i}.{part}.bias"] = (hidden,)
        shapes[f"h.{i}.attn.bias"] = (1, 1, 16, 16)
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


def qwen3_moe_tensors() -> dict[str, torch.Tensor]:
    """One gate, up and down matrix for each expert, as on the hub."""
    torch.manual_seed(0)
    layer = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, 12),
        "model.norm.weight": (12,),
        "lm_head.weight": (VOCAB, 12),
        f"{layer}.input_layernorm.weight": (12,),
        f"{layer}.post_attention_layernorm.weight": (12,),
        f"{layer}.self_attn.q_proj.weight": (16, 12),
        f"{layer}.self_attn.k_proj.weight": (8, 12),
        f"{layer}.self_attn.v_proj.weight": (8, 12),
        f"{layer}.self_attn.o_proj.weight": (12, 16),
        f"{layer}.self_attn.q_norm.weight": (8,),
        f"{layer}.self_attn.k_norm.weight": (8,),
        f"{layer}.mlp.gate.weight": (3, 12),
    }
    for e in range(3):
        for part, size in (("gate", (10, 12)), ("up", (10, 12)), ("down", (12, 10))):
            shapes[f"{layer}.mlp.experts.{e}.{part}_proj.weight"] = size
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder with one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], count: int = 3
) -> Path:
    """The same in `count` shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        shard = dict(list(tensors.items())[number::count])
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
