"""load(dense="int8"): which weights change, what the model then computes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia import OssiaError
from ossia import load_model as load
from ossia.checkpoint import load_share, save
from ossia.model.linear import Linear, Weighted
from ossia.ops.int8 import Int8
from ossia.options import Int8 as DenseInt8
from ossia.options import LoadOptions
from tests.tiny_checkpoints import (
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    QWEN3_MOE_CONFIG,
    gpt2_tensors,
    gpt_oss_tensors,
    qwen3_moe_tensors,
    write,
)

FAMILIES = {
    "gpt2": (GPT2_CONFIG, gpt2_tensors),
    "qwen3 moe": (QWEN3_MOE_CONFIG, qwen3_moe_tensors),
    "gpt-oss": (GPT_OSS_CONFIG, gpt_oss_tensors),
}


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path) -> Path:
    config, tensors = FAMILIES[request.param]
    return write(tmp_path / "model", config, tensors())


def test_matrices_are_quantized_and_all_else_is_as_it_was(folder):
    plain, packed = load(folder), load(folder, dense="int8")
    quantized = {
        name: module.value
        for name, module in packed.named_modules()
        if isinstance(module, Weighted) and isinstance(module.value, Int8)
    }
    parts = {name.rpartition(".")[2] for name in quantized}
    assert {"q", "k", "v", "o", "unembedding"} <= parts
    assert parts <= {"q", "k", "v", "o", "gate", "up", "down", "unembedding"}
    before, after = plain.state_dict(), packed.state_dict()
    missing = before.keys() - after.keys()
    assert missing == {f"{name}.weight" for name in quantized} & before.keys()
    own = {f"{name}.{part}" for name in quantized for part in ("codes", "scales")}
    assert after.keys() - before.keys() == own
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - own)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_model_computes_with_what_the_codes_stand_for(folder, backend):
    packed = load(folder, dtype="float32", backend=backend, dense="int8")
    plain = load(folder, dtype="float32", backend="reference")
    for name, module in packed.named_modules():
        if isinstance(module, Linear) and isinstance(module.value, Int8) and name != "unembedding":
            unpacked = plain.get_submodule(name)
            assert isinstance(unpacked, Linear)
            unpacked.replace(module.value.dense())
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        hidden = plain.hidden_states(tokens, plain.context(tokens))
        assert packed.unembedding is not None
        codes = packed.unembedding.value
        assert isinstance(codes, Int8)
        expected = hidden @ codes.dense().T
        torch.testing.assert_close(packed(tokens), expected, rtol=1e-4, atol=1e-4)


def test_such_a_model_is_not_saved(folder, tmp_path):
    with pytest.raises(OssiaError, match="int8 dense weights is not saved"):
        save(load(folder, dense="int8"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_another_name_is_refused(folder):
    with pytest.raises(OssiaError, match="--dense must be int8, not int4"):
        load(folder, dense="int4")


def test_a_weight_that_is_not_a_number_is_named(tmp_path):
    tensors = gpt_oss_tensors()
    tensors["model.layers.1.self_attn.k_proj.weight"][2, 3] = float("nan")
    folder = write(tmp_path / "model", GPT_OSS_CONFIG, tensors)
    with pytest.raises(OssiaError, match=r"layers\.1\.attention\.k\.weight: .* NaN"):
        load(folder, dense="int8")
    # Another error would leave the other processes waiting.
    options = LoadOptions(device="cpu", devices=2, dense=DenseInt8.int8)
    with pytest.raises(OssiaError, match=r"layers\.1\.attention\.k\.weight: .* NaN"):
        load_share(folder, options, rank=0)
