"""Layouts use every tensor that transformers saves to fill each of our elements exactly once."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ossia import families
from ossia.config import ExpertFormat
from ossia.insight.counts import tensors

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6}
HEADS = {**SIZES, "num_key_value_heads": 2, "head_dim": 10}
MOE = {"num_experts_per_tok": 2, "num_local_experts": 3}


def small(kind, **changes):
    """A model of transformers with awkward shapes and random weights, biases included."""
    torch.manual_seed(0)
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=40, n_embd=24, n_head=3, n_layer=2, n_positions=16, **changes
        ),
        "qwen3": lambda: transformers.Qwen3Config(**HEADS, intermediate_size=20, **changes),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **HEADS, **MOE, moe_intermediate_size=5, intermediate_size=12, **changes
        ),
        "gpt_oss": lambda: transformers.GptOssConfig(
            **HEADS, **MOE, intermediate_size=64, **changes
        ),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def load(layout, config, theirs):
    """Our tensors by a layout; asserts that each element on either side is used exactly once."""
    shapes = {tensor.name: tensor.shape for tensor in tensors(config)}
    wanted = {row.theirs for row in layout.rows}
    theirs = {
        layout.prefix + name if layout.prefix + name in wanted else name: tensor
        for name, tensor in theirs.items()
        if name not in layout.tied and not any(re.fullmatch(p, name) for p in layout.ignored)
    }
    names = set(theirs)
    assert names == {row.theirs for row in layout.rows}
    assert shapes.keys() == {row.ours for row in layout.rows}
    ours = {name: torch.zeros(shape) for name, shape in shapes.items()}
    uses = {name: torch.zeros(shape) for name, shape in shapes.items()}
    reads = {name: torch.zeros(theirs[name].shape) for name in names}
    for row in layout.rows:
        source, count = theirs[row.theirs], reads[row.theirs]
        if row.transpose:
            source, count = source.mT, count.mT
        assert ours[row.ours][row.our_index].shape == source[row.their_index].shape, row
        ours[row.ours][row.our_index] = source[row.their_index]
        uses[row.ours][row.our_index] += 1
        count[row.their_index] += 1
    assert all((count == 1).all() for count in (*uses.values(), *reads.values()))
    return ours


def save_and_load(model, folder):
    """Our config and tensors of what `save_pretrained` writes, by the first layout."""
    model.save_pretrained(folder)
    config = families.from_hf(model.config.to_dict(), "config.json")
    return config, load(
        families.layouts(config)[0], config, load_file(folder / "model.safetensors")
    )


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {}),
        ("gpt2", {"n_inner": 50, "tie_word_embeddings": False}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"mlp_only_layers": [0], "tie_word_embeddings": True}),
        ("gpt_oss", {}),
        ("gpt_oss", {"attention_bias": False, "tie_word_embeddings": True}),
    ],
)
def test_first_layout_is_what_transformers_saves(kind, changes, tmp_path):
    save_and_load(small(kind, **changes), tmp_path)


def test_gpt2_fused_matrix_falls_apart_into_q_k_v(tmp_path):
    """GPT-2's Conv1D computes x W + b with W (in, out), and splits the result in three."""
    model = small("gpt2")
    _, ours = save_and_load(model, tmp_path)
    x = torch.randn(5, 24)
    fused = model.transformer.h[1].attn.c_attn(x).split(24, dim=-1)
    for part, expected in zip("qkv", fused, strict=True):
        name = f"layers.1.attention.{part}"
        result = torch.nn.functional.linear(x, ours[f"{name}.weight"], ours[f"{name}.bias"])
        torch.testing.assert_close(result, expected)


def test_gpt2_without_prefix_and_with_mask_buffers(tmp_path):
    """The hub's own files: no `transformer.`, masks as buffers; some repeat the embedding."""
    model = small("gpt2")
    config, ours = save_and_load(model, tmp_path)
    theirs = {name.removeprefix("transformer."): t for name, t in model.state_dict().items()}
    for i in range(2):
        theirs[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16)
        theirs[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert "lm_head.weight" in theirs
    plain = load(families.layouts(config)[0], config, theirs)
    assert all(torch.equal(plain[name], ours[name]) for name in ours)


def test_qwen3_experts_interleave_gate_and_up(tmp_path):
    """Gate and up are even and odd rows of ours, from files and from transformers' memory."""
    model = small("qwen3_moe")
    config, ours = save_and_load(model, tmp_path)
    experts = load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.1.mlp.experts.2"
    gate_up = ours["layers.1.feedforward.gate_up.weight"]
    assert torch.equal(gate_up[2, 0::2], experts[f"{prefix}.gate_proj.weight"])
    assert torch.equal(gate_up[2, 1::2], experts[f"{prefix}.up_proj.weight"])
    fused = load(families.layouts(config)[1], config, model.state_dict())
    assert all(torch.equal(fused[name], ours[name]) for name in ours)


def test_gpt_oss_dense_experts_are_transposed(tmp_path):
    model = small("gpt_oss")
    _, ours = save_and_load(model, tmp_path)
    experts = model.model.layers[0].mlp.experts
    assert torch.equal(ours["layers.0.feedforward.gate_up.weight"], experts.gate_up_proj.mT)
    assert torch.equal(ours["layers.0.feedforward.down.weight"], experts.down_proj.mT)


def packed_config():
    """The small gpt-oss with MXFP4 experts, as ossia describes it."""
    config = families.from_hf(small("gpt_oss").config.to_dict(), "config.json")
    packed = replace(config.layers[0].feedforward, format=ExpertFormat.MXFP4)
    layers = tuple(replace(layer, feedforward=packed) for layer in config.layers)
    return replace(config, layers=layers)


def gpt_oss_names(prefix, per_layer, rest):
    return {prefix.format(i) + name for i in range(2) for name in per_layer} | set(rest)


def test_packed_gpt_oss_has_the_published_names():
    """The table of the published checkpoints, hub and `original/`."""
    hub, original = families.layouts(packed_config())
    pairs = ("weight", "bias")
    kinds = ("blocks", "scales")
    assert {row.theirs for row in hub.rows} == gpt_oss_names(
        "model.layers.{}.",
        [
            *(f"self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in pairs),
            "self_attn.sinks",
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            *(f"mlp.router.{kind}" for kind in pairs),
            *(f"mlp.experts.gate_up_proj_{kind}" for kind in (*kinds, "bias")),
            *(f"mlp.experts.down_proj_{kind}" for kind in (*kinds, "bias")),
        ],
        ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
    )
    assert {row.theirs for row in original.rows} == gpt_oss_names(
        "block.{}.",
        [
            *(f"attn.{part}.{kind}" for part in ("qkv", "out") for kind in pairs),
            "attn.sinks",
            "attn.norm.scale",
            "mlp.norm.scale",
            *(f"mlp.gate.{kind}" for kind in pairs),
            *(f"mlp.{part}_weight.{kind}" for part in ("mlp1", "mlp2") for kind in kinds),
            *(f"mlp.{part}_bias" for part in ("mlp1", "mlp2")),
        ],
        ["embedding.weight", "norm.scale", "unembedding.weight"],
    )


def test_gpt_oss_original_stacks_q_k_v():
    """Both packed layouts lead to the same parameters; qkv is q over k over v."""
    config = packed_config()
    hub, original = families.layouts(config)
    shapes = {tensor.name: tensor.shape for tensor in tensors(config)}
    generator = torch.Generator().manual_seed(0)
    by_hub = {row.theirs: torch.randn(shapes[row.ours], generator=generator) for row in hub.rows}
    ours = load(hub, config, by_hub)
    by_original = {row.theirs: ours[row.ours] for row in original.rows if "qkv" not in row.theirs}
    for i in range(2):
        for kind in ("weight", "bias"):
            stack = [ours[f"layers.{i}.attention.{part}.{kind}"] for part in "qkv"]
            by_original[f"block.{i}.attn.qkv.{kind}"] = torch.cat(stack)
    again = load(original, config, by_original)
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_tied_files_may_repeat_the_embedding(tmp_path):
    """The hub's Qwen3-0.6B stores lm_head although it is the embedding."""
    model = small("qwen3", tie_word_embeddings=True)
    config, _ = save_and_load(model, tmp_path)
    assert "lm_head.weight" in model.state_dict()
    load(families.layouts(config)[0], config, model.state_dict())


def test_every_parameter_has_the_name_of_the_contract():
    """Spelt out, for one model of each kind: what `Decoder.state_dict()` calls them."""
    norms = ["attention_norm.weight", "feedforward_norm.weight"]
    square = [f"attention.{part}.weight" for part in "qkvo"]
    experts = [
        f"feedforward.{part}.{kind}"
        for part in ("gate_up", "down")
        for kind in ("blocks", "scales", "bias")
    ]
    expected = {
        "gpt2": (
            [*norms, *square, "feedforward.up.weight", "feedforward.down.weight"],
            ["embedding.weight", "positions.weight", "norm.weight", "norm.bias"],
        ),
        "qwen3-8b": (
            [
                *(*norms, *square, "attention.q_norm.weight", "attention.k_norm.weight"),
                *(f"feedforward.{part}.weight" for part in ("gate", "up", "down")),
            ],
            ["embedding.weight", "norm.weight", "unembedding.weight"],
        ),
        "gpt-oss-20b": (
            [
                *(*norms, *square, *(name.replace("weight", "bias") for name in square)),
                *("attention.sinks", "feedforward.router.weight", "feedforward.router.bias"),
                *experts,
            ],
            ["embedding.weight", "norm.weight", "unembedding.weight"],
        ),
    }
    expected["gpt2"][0].extend([name.replace("weight", "bias") for name in expected["gpt2"][0]])
    for preset, (per_layer, rest) in expected.items():
        config = families.PRESETS[preset]
        names = {f"layers.{i}.{name}" for i in range(len(config.layers)) for name in per_layer}
        for layout in families.layouts(config):
            assert {row.ours for row in layout.rows} == names | set(rest), layout.name
