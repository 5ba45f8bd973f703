"""load: each parameter from its tensor, without a copy, or one line that says why not."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ossia import OssiaError, checkpoint
from ossia import load_model as load
from ossia.checkpoint import read_config
from ossia.ops import mxfp4
from tests.models import layer_of
from tests.tiny_checkpoints import (
    EXPERTS,
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    ORIGINAL_CONFIG,
    QWEN3_MOE_CONFIG,
    gpt2_tensors,
    gpt_oss_tensors,
    original_tensors,
    qwen3_moe_tensors,
    write,
    write_shards,
)


def refusal(folder: Path) -> str:
    with pytest.raises(OssiaError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


def test_gpt_oss_parameters_are_the_tensors_of_their_names(gpt_oss: Path) -> None:
    decoder = load(gpt_oss)
    theirs, ours = gpt_oss_tensors(), decoder.state_dict()
    assert_equal(
        {
            "embedding.weight": theirs["model.embed_tokens.weight"],
            "layers.1.attention.k.weight": theirs["model.layers.1.self_attn.k_proj.weight"],
            "layers.1.attention.sinks": theirs["model.layers.1.self_attn.sinks"],
            "layers.0.feedforward.gate_up.blocks": theirs[
                "model.layers.0.mlp.experts.gate_up_proj_blocks"
            ],
            "layers.0.feedforward.down.bias": theirs["model.layers.0.mlp.experts.down_proj_bias"],
            "unembedding.weight": theirs["lm_head.weight"],
        },
        {
            name: ours[name]
            for name in (
                "embedding.weight",
                "layers.1.attention.k.weight",
                "layers.1.attention.sinks",
                "layers.0.feedforward.gate_up.blocks",
                "layers.0.feedforward.down.bias",
                "unembedding.weight",
            )
        },
    )
    assert len(ours) == len(theirs)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_both_layouts_of_gpt_oss_give_the_same_weights(gpt_oss: Path, tmp_path: Path) -> None:
    original = write(tmp_path / "original", ORIGINAL_CONFIG, original_tensors())
    assert_equal(load(original).state_dict(), load(gpt_oss).state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_is_one_for_both_layouts(gpt_oss: Path, tmp_path: Path, dtype: str) -> None:
    original = write(tmp_path / "original", ORIGINAL_CONFIG, original_tensors())
    found, expected = (load(place, dtype=dtype) for place in (original, gpt_oss))
    assert found.embedding.weight.dtype is getattr(torch, dtype)
    assert_equal(found.state_dict(), expected.state_dict())


def test_shards_give_the_same_weights(gpt_oss: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", GPT_OSS_CONFIG, gpt_oss_tensors())
    assert_equal(load(shards).state_dict(), load(gpt_oss).state_dict())


def test_dense_experts_are_transposed_against_packed_ones(gpt_oss: Path, tmp_path: Path) -> None:
    tensors = gpt_oss_tensors()
    for name in [name for name in tensors if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        packed = mxfp4.MXFP4(tensors.pop(name), tensors.pop(f"{stem}_scales"))
        tensors[stem] = mxfp4.unpack(packed).mT.contiguous()
    config = {key: GPT_OSS_CONFIG[key] for key in GPT_OSS_CONFIG if key != "quantization_config"}
    dense = load(write(tmp_path / "dense", config, tensors))
    packed = load(gpt_oss)
    for layer, other in zip(dense.layers, packed.layers, strict=True):
        for part in ("gate_up", "down"):
            matrices = getattr(other.feedforward, part).value
            expected = mxfp4.unpack(matrices)
            assert torch.equal(getattr(layer.feedforward, part).weight, expected)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_loads_with_and_without_the_prefix(tmp_path: Path, prefix: str) -> None:
    ours = load(write(tmp_path, GPT2_CONFIG, gpt2_tensors(prefix))).state_dict()
    theirs = gpt2_tensors()
    q, k, v = theirs["h.1.attn.c_attn.weight"].chunk(3, dim=1)  # (in, out)
    for part, matrix in (("q", q), ("k", k), ("v", v)):
        assert torch.equal(ours[f"layers.1.attention.{part}.weight"], matrix.T)
    assert torch.equal(ours["layers.0.attention.v.bias"], theirs["h.0.attn.c_attn.bias"][24:])
    assert torch.equal(ours["layers.0.feedforward.up.weight"], theirs["h.0.mlp.c_fc.weight"].T)
    assert torch.equal(ours["positions.weight"], theirs["wpe.weight"])
    assert "unembedding.weight" not in ours


def test_a_tied_model_may_be_stored_under_either_name_or_both(tmp_path: Path) -> None:
    tensors = gpt2_tensors("transformer.")
    embedding = tensors.pop("transformer.wte.weight")
    for name, more in (
        ("own", {"transformer.wte.weight": embedding}),
        ("head", {"lm_head.weight": embedding}),
        ("both", {"wte.weight": embedding, "lm_head.weight": embedding.clone()}),
        ("other dtype", {"wte.weight": embedding, "lm_head.weight": embedding.double()}),
    ):
        tied = load(write(tmp_path / name, GPT2_CONFIG, tensors | more))
        assert tied.unembedding is None
        assert torch.equal(tied.state_dict()["embedding.weight"], embedding)
    neither = write(tmp_path / "neither", GPT2_CONFIG, tensors)
    assert "1 missing: transformer.wte.weight" in refusal(neither)


def test_matrices_that_differ_are_not_tied_and_an_untied_model_needs_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = gpt2_tensors("transformer.")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["lm_head.weight"][-1, -1] += 1
    found = load(write(tmp_path / "tied", GPT2_CONFIG, tensors))
    assert torch.equal(found.state_dict()["unembedding.weight"], tensors["lm_head.weight"])
    assert not found.config.tied_embeddings
    assert "the weights hold two different matrices" in caplog.text
    untied_config = GPT2_CONFIG | {"tie_word_embeddings": False}
    untied = load(write(tmp_path / "untied", untied_config, tensors))
    assert torch.equal(untied.state_dict()["unembedding.weight"], tensors["lm_head.weight"])
    del tensors["lm_head.weight"]
    lacking = write(tmp_path / "lacking", untied_config, tensors)
    assert "1 missing: lm_head.weight" in refusal(lacking)


def test_separate_gate_and_up_matrices_interleave(tmp_path: Path) -> None:
    ours = load(write(tmp_path, QWEN3_MOE_CONFIG, qwen3_moe_tensors())).state_dict()
    theirs = qwen3_moe_tensors()
    for e in range(3):
        experts = f"model.layers.0.mlp.experts.{e}"
        gate_up = ours["layers.0.feedforward.gate_up.weight"][e]
        assert torch.equal(gate_up[0::2], theirs[f"{experts}.gate_proj.weight"])
        assert torch.equal(gate_up[1::2], theirs[f"{experts}.up_proj.weight"])
        down = ours["layers.0.feedforward.down.weight"][e]
        assert torch.equal(down, theirs[f"{experts}.down_proj.weight"])


def test_parameters_are_views_of_the_file(tmp_path: Path) -> None:
    """Also thirds of a fused matrix, and transposed ones: q, k and v of a GPT-2 share a storage."""
    attention = layer_of(load(write(tmp_path, GPT2_CONFIG, gpt2_tensors())), 0).attention
    storages = {
        part.weight.untyped_storage().data_ptr() for part in (attention.q, attention.k, attention.v)
    }
    assert len(storages) == 1
    assert attention.q.weight.stride() == (1, 36)


def test_what_is_copied_is_the_same_and_owes_nothing_to_the_file(gpt_oss: Path) -> None:
    expected = {name: tensor.clone() for name, tensor in load(gpt_oss).state_dict().items()}
    copied = load(gpt_oss, load="copy").state_dict()
    for file in gpt_oss.glob("*.safetensors"):
        with file.open("r+b") as weights:
            weights.seek(-64, os.SEEK_END)
            weights.write(b"\x11" * 64)
    assert copied.keys() == expected.keys()
    assert all(torch.equal(copied[name], tensor) for name, tensor in expected.items())


def test_another_way_to_load_is_refused(gpt_oss: Path) -> None:
    with pytest.raises(OssiaError, match="--load must be map or copy, not move"):
        load(gpt_oss, load="move")


def test_the_dtype_is_the_configs_then_that_of_most_weights_then_what_is_asked_for(
    tmp_path: Path,
) -> None:
    mixed = {
        name: tensor.half() if tensor.ndim > 1 else tensor
        for name, tensor in gpt2_tensors().items()
    }
    silent = write(tmp_path / "silent", GPT2_CONFIG, mixed)
    assert read_config(silent).dtype == "float16"
    assert {tensor.dtype for tensor in load(silent).state_dict().values()} == {torch.float16}
    said = write(tmp_path / "said", GPT2_CONFIG | {"torch_dtype": "bfloat16"}, mixed)
    assert {tensor.dtype for tensor in load(said).state_dict().values()} == {torch.bfloat16}
    for asked in ("float32", torch.float32):
        decoder = load(said, dtype=asked)
        assert decoder.config.dtype == "float32"
        assert torch.equal(decoder.embedding.weight, mixed["wte.weight"].float())
    with pytest.raises(OssiaError, match="--dtype must be float32 or bfloat16 or "):
        load(said, dtype="int8")


def test_packed_experts_stay_packed_in_another_dtype(gpt_oss: Path) -> None:
    decoder = load(gpt_oss, dtype="float32")
    dtypes = {name: tensor.dtype for name, tensor in decoder.state_dict().items()}
    packed = {name for name in dtypes if name.endswith((".blocks", ".scales"))}
    assert len(packed) == 8
    assert all(dtypes[name] is torch.uint8 for name in packed)
    assert {dtypes[name] for name in dtypes.keys() - packed} == {torch.float32}


def test_the_device_is_chosen_aloud_or_refused(
    gpt_oss: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="ossia"):
        assert load(gpt_oss, device="auto").device == torch.device("cpu")
    assert "device cpu" in caplog.text
    with pytest.raises(OssiaError, match="device 'toaster' cannot be used"):
        load(gpt_oss, device="toaster")


Change = Callable[[dict[str, Tensor]], None]
NAME = "model.layers.1.self_attn.q_proj.weight"
BLOCKS = "model.layers.0.mlp.experts.down_proj_blocks"
SCALES = "model.layers.1.mlp.experts.gate_up_proj_scales"


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return apply


def removed(*names: str) -> Change:
    def apply(tensors: dict[str, Tensor]) -> None:
        for name in names:
            del tensors[name]

    return apply


def added(*names: str) -> Change:
    return lambda tensors: tensors.update({name: torch.zeros(1) for name in names})


def with_nan_scale(scales: Tensor) -> Tensor:
    scales[EXPERTS - 1, 5, 0] = 255
    return scales


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(NAME, lambda x: x[:, 1:]), f"{NAME} has the shape (24, 31), expected (24, 32)"),
        (replaced(NAME, lambda x: x[None]), f"{NAME} has the shape (1, 24, 32), expected (24, 32)"),
        (replaced(NAME, Tensor.int), f"{NAME} has the dtype int32, expected float32 or"),
        (
            replaced(NAME, lambda x: x.to(torch.float8_e4m3fn)),
            f"{NAME} has the dtype float8_e4m3fn, expected float32 or bf",
        ),
        (replaced(BLOCKS, Tensor.float), f"{BLOCKS} has the dtype float32, expected uint8"),
        (replaced(SCALES, Tensor.char), f"{SCALES} has the dtype int8, expected uint8"),
        (
            replaced(SCALES, with_nan_scale),
            f"{SCALES} has the scale byte 255 at [{EXPERTS - 1}, 5, 0], which is NaN",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(
    tmp_path: Path, change: Change, message: str
) -> None:
    tensors = gpt_oss_tensors()
    change(tensors)
    folder = write(tmp_path, GPT_OSS_CONFIG, tensors)
    told = refusal(folder)
    assert str(folder / "model.safetensors") in told
    assert message in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed(NAME), f"1 missing: {NAME}"),
        (added("extra"), "1 unknown: extra"),
        (added(*"edcba"), "5 unknown: "),
        (lambda tensors: (removed(NAME)(tensors), added("x")(tensors)), f"{NAME}; 1 unknown: x"),
        (
            removed(*(f"model.layers.0.self_attn.{part}_proj.bias" for part in "qkvo")),
            "4 missing: model.layers.0.self_attn.q_proj.bias, ",
        ),
    ],
)
def test_missing_and_surplus_tensors_are_named(
    tmp_path: Path, change: Change, message: str
) -> None:
    tensors = gpt_oss_tensors()
    change(tensors)
    told = refusal(write(tmp_path, GPT_OSS_CONFIG, tensors))
    assert str(tmp_path) in told
    assert message in told
    assert (", ..." in told) is (message[0] in "45")


def test_a_fused_matrix_with_surplus_rows_is_refused(tmp_path: Path) -> None:
    tensors = original_tensors()
    name = "block.0.attn.qkv.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    told = refusal(write(tmp_path, ORIGINAL_CONFIG, tensors))
    assert f"{name} has the shape (49, 32), expected (48, 32)" in told


def test_a_shard_is_named_for_a_wrong_tensor_in_it(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, GPT_OSS_CONFIG, gpt_oss_tensors())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = gpt_oss_tensors()
    shard = {name: tensors[name] for name, file in index.items() if file == index[NAME]}
    shard[NAME] = shard[NAME][1:].contiguous()
    save_file(shard, folder / index[NAME])
    assert f"{folder / index[NAME]}: tensor {NAME} has the shape" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json is not a JSON object"),
        ('{"model_type": "mamba"}', "'model_type' is 'mamba'"),
        ('{"model_type": "gpt2", "model_type": "gpt2"}', "config.json: model_type occurs twice"),
        (json.dumps(GPT_OSS_CONFIG | {"surprise": 1}), "surprise"),
    ],
)
def test_a_wrong_config_is_told(gpt_oss: Path, text: str, message: str) -> None:
    (gpt_oss / "config.json").write_text(text)
    told = refusal(gpt_oss)
    assert str(gpt_oss / "config.json") in told
    assert message in told


def test_an_absent_config_is_told(gpt_oss: Path) -> None:
    (gpt_oss / "config.json").unlink()
    with pytest.raises(OssiaError, match=r"cannot read .*config\.json: No such file"):
        checkpoint.load(gpt_oss)


def test_experts_on_disk_are_not_copied(gpt_oss: Path) -> None:
    with pytest.raises(OssiaError, match="load copy needs all weights in memory"):
        load(gpt_oss, load="copy", expert_memory="7kB")
