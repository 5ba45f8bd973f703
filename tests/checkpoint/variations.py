"""Random variations of a checkpoint's config.json and files that transformers reads: the same model
told otherwise, or a model that differs in what a key says.

`Variation(seed)` builds a tiny model of one of the families, saves it, and applies some of CHANGES.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

VOCAB = 61
Change = Callable[["Variation"], bool]
CHANGES: list[Change] = []


def change(function: Change) -> Change:
    """Register a change; it returns False where it does not apply."""
    CHANGES.append(function)
    return function


@dataclass
class Variation:
    """config.json, and the tensors by file. `refused` is a key that changes the numbers in a way
    that ossia does not implement.
    """

    seed: int
    family: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    refused: str | None = None
    applied: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.family = self.pick("gpt2", "qwen3", "qwen3_moe", "gpt_oss")
        config = _config(self.family, self.random)
        self.data = {**config.to_dict(), "architectures": [_ARCHITECTURES[self.family]]}
        self.files = {"model.safetensors": _tensors(config, self.seed)}
        for function in self.random.sample(CHANGES, 10):
            if len(self.applied) < 5 and self.refused is None and function(self):
                self.applied.append(function.__name__)

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of a folder that is not sharded yet."""
        return self.files["model.safetensors"]

    @property
    def rope(self) -> bool:
        return self.family != "gpt2"

    @property
    def embedding(self) -> str:
        return "transformer.wte.weight" if self.family == "gpt2" else "model.embed_tokens.weight"

    @property
    def prefix(self) -> str:
        return "transformer." if self.family == "gpt2" else "model."

    def write(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.data, default=str))
        for name, tensors in self.files.items():
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, folder / name, metadata={"format": "pt"})
        if self.index is not None:
            (folder / "model.safetensors.index.json").write_text(json.dumps(self.index))


_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


def _config(family: str, draw: random.Random) -> PreTrainedConfig:
    if family == "gpt2":
        sizes = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 32}
        tied = draw.random() < 0.7
        return AutoConfig.for_model("gpt2", vocab_size=VOCAB, tie_word_embeddings=tied, **sizes)
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": draw.choice((2, 4)),
        "head_dim": draw.choice((8, 12)),
        "max_position_embeddings": 256,
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice((1e4, 1e6))},
    }
    if family == "qwen3_moe":
        values |= {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
        values |= {"norm_topk_prob": draw.random() < 0.5}
    if family == "gpt_oss":
        values |= {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}
        values |= {"pad_token_id": 0, "eos_token_id": 1, "swiglu_limit": draw.choice((7.0, 1.0))}
    if draw.random() < 0.5:
        values["rope_parameters"] |= {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    return AutoConfig.for_model(family, **values)


def _tensors(config: PreTrainedConfig, seed: int) -> dict[str, Tensor]:
    """Random weights under the names that transformers saves, a mixture's experts one by one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tensors = {}
        for name, value in model.named_parameters():
            scale = 0.3 if value.dim() == 1 else 1.5 * value.shape[-1] ** -0.5
            is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            tensors[name] = torch.randn(value.shape) * scale + is_norm
    if config.model_type == "qwen3_moe" and seed % 2:
        for name in [name for name in tensors if name.endswith("experts.gate_up_proj")]:
            stem = name.removesuffix(".gate_up_proj")
            for e, (both, down) in enumerate(
                zip(tensors.pop(name), tensors.pop(f"{stem}.down_proj"), strict=True)
            ):
                gate, up = both.chunk(2)
                parts = {"gate": gate, "up": up, "down": down}
                tensors |= {f"{stem}.{e}.{part}_proj.weight": t for part, t in parts.items()}
    return tensors


# Keys that are absent, null or without effect


@change
def drop_a_default(v: Variation) -> bool:
    """Leave out a key whose value is the one that transformers assumes."""
    assumed = AutoConfig.for_model(v.family).to_dict()
    same = sorted(
        key
        for key, value in v.data.items()
        if value is not None and assumed.get(key) == value and key != "model_type"
    )
    if not same:
        return False
    for key in v.random.sample(same, min(3, len(same))):
        del v.data[key]
    return True


@change
def null_keys(v: Variation) -> bool:
    for key in ("sliding_window_pattern", "my_key", "quantization_config"):
        if v.pick(True, False):
            v.data[key] = None
    for key in ("n_inner", "layer_types", "bos_token_id", "pad_token_id", "task_specific_params"):
        if key in v.data and key != "layer_types" and v.pick(True, False):
            v.data[key] = None
    return True


@change
def keys_without_effect(v: Variation) -> bool:
    idle = {
        "use_cache": False,
        "pretraining_tp": 1,
        "is_decoder": True,
        "mlp_bias": False,
        "qkv_bias": False,
        "shared_expert_intermediate_size": 0,
        "auto_map": {},
        "_attn_implementation": "eager",
        "max_seq_len_cached": 4096,
        "unk_token_id": 0,
        "classifier_dropout": 0.1,
        "pruned_heads": {},
        "model_max_length": 12,
        "partial_rotary_factor": 1.0,
    }
    if v.family == "gpt2":
        idle |= {"n_ctx": 999, "reorder_and_upcast_attn": True, "predict_special_tokens": True}
        del idle["partial_rotary_factor"]
    if v.family == "qwen3_moe":
        idle |= {"use_qk_norm": True, "max_window_layers": 1, "output_router_logits": False}
        idle |= {"mlp_only_layers": []}
    if v.family == "qwen3":
        idle |= {"num_experts": 0, "decoder_sparse_step": 1, "norm_topk_prob": False}
    if v.family == "gpt_oss":
        idle |= {"initial_context_length": 17, "hidden_act": "gelu", "experts_per_token": 2}
        idle |= {"use_sliding_window": True, "norm_topk_prob": True}
    for key in v.random.sample(sorted(idle), 3):
        v.data[key] = idle[key]
    return True


@change
def other_words(v: Variation) -> bool:
    """Synonyms of values and architectures."""
    if v.family == "gpt2":
        v.data["activation_function"] = v.pick("gelu_pytorch_tanh", "gelu_fast", "gelu_new")
    elif v.family != "gpt_oss":
        v.data["hidden_act"] = "swish"
    base = _ARCHITECTURES[v.family].replace("ForCausalLM", "Model").replace("LMHead", "")
    v.data["architectures"] = v.pick([base], None, [_ARCHITECTURES[v.family], "Other"], [])
    return True


@change
def synonyms(v: Variation) -> bool:
    """Other names of keys, alone or beside the usual one, whose value then may be stale."""
    names = {
        "gpt2": {
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_positions": "max_position_embeddings",
        },
        "qwen3_moe": {"num_experts": "num_local_experts"},
        "gpt_oss": {"num_local_experts": "num_experts"},
    }.get(v.family)
    if not names:
        return False
    usual = v.pick(*names)
    if usual not in v.data:
        return False
    v.data[names[usual]] = v.data[usual]
    if v.pick(True, False):
        v.data[usual] *= 2  # the other counts
    return True


@change
def token_ids(v: Variation) -> bool:
    v.data["eos_token_id"] = v.pick([1, 2], [1, -1], 3, None, [])
    v.data["bos_token_id"] = v.pick(-1, 4, None)
    v.data["pad_token_id"] = v.pick(-1, 0, None)
    return True


@change
def dtypes(v: Variation) -> bool:
    v.data.pop("dtype", None)
    v.data |= v.pick(
        {},
        {"torch_dtype": "float32"},
        {"dtype": "bfloat16", "torch_dtype": "half"},
        {"dtype": "float64"},  # the caller asks for another
        {"torch_dtype": "torch.bfloat16"},
    )
    return True


# Attention


@change
def windows(v: Variation) -> bool:
    if v.family not in ("qwen3", "qwen3_moe") or v.data.get("num_hidden_layers") != 2:
        return False
    v.data |= {"use_sliding_window": v.pick(True, False), "sliding_window": v.pick(3, None)}
    if v.family == "qwen3":
        v.data |= {"layer_types": None, "max_window_layers": v.pick(-1, 0, 1, 2, 28)}
    if not v.data["use_sliding_window"]:
        v.data["sliding_window"] = v.pick(0, -1, 5)
    return True


@change
def explicit_layer_types(v: Variation) -> bool:
    if v.family != "gpt_oss" or v.data.get("num_hidden_layers") != 2:
        return False
    v.data["layer_types"] = v.pick(
        None,
        ["full_attention", "full_attention"],
        ["attention", "sliding_attention"],
        ["full_attention", "sliding_attention"],
    )
    return True


@change
def dense_layers(v: Variation) -> bool:
    if v.family != "qwen3_moe":
        return False
    v.data["mlp_only_layers"] = v.pick(None, [], [7, -1])
    v.data["decoder_sparse_step"] = 1
    return True


# RoPE


@change
def the_older_spelling(v: Variation) -> bool:
    if not v.rope or not isinstance(v.data.get("rope_parameters"), dict):
        return False
    rope = dict(v.data.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    v.data |= {"rope_theta": v.pick(theta, int(theta)), "rope_scaling": rope}
    if rope["rope_type"] == "default" and v.family != "gpt_oss":
        v.data["rope_scaling"] = v.pick(None, rope, {"type": "default"})
    elif v.pick(True, False):
        rope["type"] = rope.pop("rope_type") if v.pick(True, False) else "linear"
    return True


@change
def both_spellings(v: Variation) -> bool:
    """rope_scaling counts, unless it is empty."""
    if not v.rope or not isinstance(v.data.get("rope_parameters"), dict):
        return False
    rope = dict(v.data["rope_parameters"])
    stale = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 77.0}
    v.data |= v.pick(
        {"rope_scaling": rope, "rope_parameters": stale},
        {"rope_scaling": {}},
        {"rope_scaling": None},
        {"rope_theta": v.pick(500.0, 0, "none")},  # within the object counts
        {"rope_scaling": {key: x for key, x in rope.items() if key != "rope_theta"}},
    )
    return True


@change
def no_rope_at_all(v: Variation) -> bool:
    if not v.rope:
        return False
    for key in ("rope_parameters", "rope_scaling", "rope_theta"):
        v.data.pop(key, None)
    v.data |= v.pick({}, {"rope_theta": 1000.0}, {"rope_scaling": None, "rope_theta": 50})
    return True


@change
def yarn(v: Variation) -> bool:
    name = v.pick("rope_parameters", "rope_scaling")
    rope = v.data.get(name)
    if not v.rope or not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
        return False
    for more in v.random.sample(_YARN, 2):
        rope |= more
    if v.pick(True, False):
        v.data["original_max_position_embeddings"] = v.pick(32, 128)
    return True


_YARN: list[dict[str, Any]] = [
    {"attention_factor": 1.0},
    {"attention_factor": 0.8782488562869419},
    {"attention_factor": None},
    {"attention_factor": 2},
    {"attn_factor": 0.5},
    {"mscale": 1.0, "mscale_all_dim": 0.5},
    {"mscale": 0.7, "mscale_all_dim": 0.0},
    {"mscale": 1.3},
    {"truncate": False},
    {"truncate": None},
    {"beta_fast": 20, "beta_slow": 2.0},
    {"beta_fast": None, "beta_slow": 0},
    {"factor": 1.0},
    {"factor": None},
    {"factor": 0.5},
    {"factor": 2},
    {"low_freq_factor": 3.0, "mrope_section": [1, 2]},
    {"finetuned": True},
]


@change
def idle_kinds_of_rope(v: Variation) -> bool:
    rope = v.data.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type") != "default":
        return False
    rope |= v.pick(
        {"rope_type": "linear", "factor": 1.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "default", "factor": 8.0},
        {"rope_type": "default", "original_max_position_embeddings": 16, "mscale": 3.0},
    )
    return True


# What changes the numbers and is not implemented


@change
def not_implemented(v: Variation) -> bool:
    if v.random.random() < 0.5:
        return False
    options: list[tuple[str, dict[str, Any]]] = [("unknown", {"logit_scale": 2.0, "unknown": 5})]
    if v.family == "gpt2":
        options += [
            ("activation_function", {"activation_function": "relu"}),
            ("scale_attn_by_inverse_layer_idx", {"scale_attn_by_inverse_layer_idx": True}),
            ("scale_attn_weights", {"scale_attn_weights": False}),
        ]
    else:
        rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        options += [("rope_type", {"rope_scaling": rope, "rope_parameters": None})]
        if v.family != "gpt_oss":
            options += [("hidden_act", {"hidden_act": "gelu"})]
    v.refused, values = v.pick(*options)
    v.data |= values
    return True


# Names, buffers and values of tensors


@change
def without_a_prefix(v: Variation) -> bool:
    if v.index is not None:
        return False
    everywhere = v.pick(True, False)

    def renamed(name: str) -> str:
        # transformers stacks experts in the order of names, so theirs are all of one kind.
        stripped = everywhere or (".experts." not in name and v.pick(True, False))
        return name.removeprefix(v.prefix) if stripped else name

    v.files["model.safetensors"] = {renamed(name): x for name, x in v.tensors.items()}
    return True


@change
def tied_under_another_name(v: Variation) -> bool:
    own = v.embedding
    if v.index is not None or not v.data.get("tie_word_embeddings") or own not in v.tensors:
        return False
    tensor = v.tensors[own]
    head = v.pick(tensor.clone(), torch.randn(tensor.shape), tensor)
    v.tensors["lm_head.weight"] = head
    if head is tensor:
        del v.tensors[own]
    return True


@change
def buffers(v: Variation) -> bool:
    if v.index is not None:
        return False
    if v.family == "gpt2":
        v.tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        v.tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
        return True
    v.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    v.tensors["model.rotary_emb.inv_freq"] = torch.rand(4)
    scale = v.pick("self_attn.k_scale", "self_attn.attn.v_scale", "self_attn.k_proj.k_scale")
    v.tensors[f"model.layers.1.{scale}"] = torch.tensor(0.5)
    return True


@change
def mixed_dtypes(v: Variation) -> bool:
    if v.index is not None:
        return False
    for name, tensor in v.tensors.items():
        kind = v.pick(torch.float16, torch.bfloat16, torch.float32, torch.float64)
        if tensor.is_floating_point():
            v.tensors[name] = tensor.to(kind)
    return True


@change
def stale_quantization(v: Variation) -> bool:
    """transformers dequantizes what is not packed, or refuses for lack of a library."""
    if v.family != "gpt_oss":
        return False
    v.data["quantization_config"] = {"quant_method": "mxfp4", "dequantize": True}
    return True


@change
def shards(v: Variation) -> bool:
    if v.index is not None:
        return False
    names, tensors = [f"model-{n}-of-3.safetensors" for n in (1, 2, 3)], v.tensors
    where = {name: v.pick(*names) for name in tensors}
    where |= dict(zip(v.random.sample(sorted(tensors), 3), names, strict=True))
    v.files = {
        file: {name: tensors[name] for name in tensors if where[name] == file} for file in names
    }
    twice = v.pick(*v.files[names[0]])
    if v.pick(True, False):  # the last file counts, whatever the index says
        v.files[names[2]][twice] = v.files[names[0]][twice]
        v.files[names[0]][twice] = torch.randn_like(v.files[names[0]][twice], dtype=torch.float)
    if v.pick(True, False):
        v.files["unused.safetensors"] = {"other.weight": torch.rand(3)}
    if v.pick(True, False):
        where["of.no.file"] = names[1]
    if v.pick(True, False):
        where[twice] = names[1]
    v.index = {"metadata": {}, "weight_map": where}
    return True
