"""Counts from a config alone agree with published figures, torch and transformers' models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ossia
from ossia import families
from ossia.config import ExpertFormat, Role
from ossia.insight.counts import (
    bytes_per_token,
    count,
    expert_parameters,
    forward_flops,
    kv_bytes,
    tensors,
)
from ossia.model import Decoder
from ossia.model.linear import Weighted
from ossia.train.runs import presets

# Parameters as counted on the hub (repeated lm_heads of tied models left out).
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_total_parameters(name):
    assert count(families.PRESETS[name]).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", families.PRESETS)
def test_parameters_are_the_elements_of_a_decoder_on_the_meta_device(name):
    config = families.PRESETS[name]
    with torch.device("meta"):
        decoder = Decoder(config)
    # Packed experts are buffers: each byte of blocks encodes two values, scales encode none.
    packed = sum(2 * b.numel() for n, b in decoder.named_buffers() if n.endswith("blocks"))
    assert count(config).parameters == sum(p.numel() for p in decoder.parameters()) + packed
    dense = sum(p.numel() for p in decoder.parameters() if p.dim() == 3)
    assert expert_parameters(config) == packed + dense


@pytest.mark.parametrize("name", ["gpt2", "qwen3-8b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_matrices_have_the_roles_of_a_decoders_modules(name):
    config = families.PRESETS[name]
    with torch.device("meta"):
        decoder = Decoder(config)
    modules = {n: m.role for n, m in decoder.named_modules() if isinstance(m, Weighted)}
    found = {t.name.rpartition(".")[0]: t.role for t in tensors(config) if t.role is not None}
    if config.tied_embeddings:
        assert found.pop("embedding") is Role.UNEMBEDDING
    assert found == modules


@pytest.mark.parametrize(
    ("name", "total", "active", "on_disk", "per_token"),
    [
        ("gpt-oss-20b", 20.915, 3.6, 13.76, 3.71),
        ("gpt-oss-120b", 116.829, 5.1, 65.25, 5.00),
    ],
)
def test_gpt_oss_has_the_published_figures(name, total, active, on_disk, per_token):
    """In billions: parameters in all and active, bytes of the checkpoint and read per token."""
    counts = count(families.PRESETS[name])
    assert round(counts.parameters / 1e9, 3) == total
    assert round(counts.active_parameters / 1e9, 1) == active
    assert round(counts.checkpoint_bytes / 1e9, 2) == on_disk
    assert round(counts.bytes_per_token / 1e9, 2) == per_token


def test_dense_matrices_of_other_sizes_are_read_as_those():
    """In Q8_0, two bytes of scale for 32 of codes, gpt-oss-20b reads 2.57 GB."""
    config = families.PRESETS["gpt-oss-20b"]
    read = bytes_per_token(config, 34 / 32)
    assert round(read / 1e9, 2) == 2.57
    assert bytes_per_token(config) == bytes_per_token(config, 2) == count(config).bytes_per_token
    layer = 2880 * (4096 + 2 * 512 + 4096)
    dense = 24 * layer + 2880 * 201088
    assert bytes_per_token(config) - read == pytest.approx(
        dense * (1 - 2 / 32), abs=200
    )  # not routers


@pytest.mark.parametrize(
    ("name", "active", "with_embedding"),
    [("qwen3-30b-a3b", 3, 33), ("qwen3-235b-a22b", 22, 221)],
)
def test_qwens_mixtures_are_as_active_as_their_names_say(name, active, with_embedding):
    """In billions; the 3.3 B on the smaller model's card include the embedding and are cut off,
    not rounded.
    """
    counts = count(families.PRESETS[name])
    assert round(counts.active_parameters / 1e9) == active
    assert (counts.active_parameters + counts.lookup_parameters) // 10**8 == with_embedding


@pytest.mark.parametrize(
    "file", ["base.json", "first.json", "second.json", "third.json", "fourth.json", "record.json"]
)
def test_the_packaged_models_records_have_its_counts(file):
    folder = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
    found = json.loads((folder / file).read_text(encoding="utf-8"))["parameters"]
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = replace(presets.PRESETS["small-gpt-oss"], vocab_size=vocabulary)
    counts = count(config)
    assert (found["total"], found["active"]) == (counts.parameters, counts.active_parameters)


def test_a_dense_tied_model_is_all_active_but_for_its_positions():
    config = families.PRESETS["gpt2"]
    counts = count(config)
    assert counts.parameters - counts.active_parameters == 1024 * 768
    assert counts.checkpoint_bytes == 4 * counts.parameters
    assert counts.bytes_per_token == 4 * (counts.active_parameters + 768)  # one position's row


def test_kv_cache_grows_until_the_windows_are_full():
    """gpt-oss-20b: 8 heads of 64 for keys and values in bfloat16; 12 layers keep 128 positions."""
    config = families.PRESETS["gpt-oss-20b"]
    per_layer = 2 * 8 * 64 * 2
    assert count(config).kv_bytes_per_token == 24 * per_layer
    assert kv_bytes(config, 128) == 128 * 24 * per_layer
    assert kv_bytes(config, 1000) == (1000 + 128) * 12 * per_layer


def test_keys_and_values_in_fp8_take_a_byte_each():
    config = ossia.config("gpt-oss-20b")
    assert kv_bytes(config, 1000, "fp8") == (1000 + 128) * 12 * 2 * 8 * 64


def test_keys_and_values_in_int8_have_a_scale_for_each_head():
    config = families.PRESETS["gpt-oss-20b"]
    per_layer = 2 * 8 * (64 + 4)
    assert kv_bytes(config, 1000, "int8") == (1000 + 128) * 12 * per_layer


def test_packing_changes_bytes_not_parameters():
    """MXFP4 holds 32 numbers in 17 bytes; unpacked in bfloat16 they take 64."""
    packed = families.PRESETS["gpt-oss-20b"]
    moe = replace(packed.layers[0].feedforward, format=ExpertFormat.DENSE)
    dense = replace(packed, layers=tuple(replace(x, feedforward=moe) for x in packed.layers))
    assert count(packed).parameters == count(dense).parameters
    assert count(packed).active_parameters == count(dense).active_parameters
    weights = 24 * 32 * 3 * 2880 * 2880
    saved = count(dense).checkpoint_bytes - count(packed).checkpoint_bytes
    assert saved == weights * (64 - 17) // 32


def test_names_are_unique():
    for config in families.PRESETS.values():
        names = [tensor.name for tensor in tensors(config)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["gpt2-large", "qwen3-0.6b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_transformers_counts_the_same(name):
    transformers = pytest.importorskip("transformers")
    data = families.to_hf(families.PRESETS[name])
    data.pop("quantization_config", None)
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(**data)
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_flops_of_attention_count_what_a_query_sees():
    config, length = families.PRESETS["gpt-oss-20b"], 150
    heads, dim = config.layers[0].attention.num_heads, config.layers[0].attention.head_dim
    windows = [layer.attention.window or length for layer in config.layers]
    pairs = sum(min(i + 1, window) for window in windows for i in range(length))
    without = length * (forward_flops(config, 1) - len(windows) * 4 * heads * dim)
    assert forward_flops(config, length) == without + pairs * 4 * heads * dim
