"""Files as programs really write them: stale entries, buffers and scales, names cut short, marks,
and keys that ossia does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia import OssiaError, load_model
from ossia.checkpoint import read_config
from ossia.cli.main import main
from ossia.config import ExpertFormat, expert_formats
from ossia.ops import mxfp4
from tests.tiny_checkpoints import (
    EXPERTS,
    GPT2_CONFIG,
    GPT_OSS_CONFIG,
    HIDDEN,
    INTER,
    LAYERS,
    QWEN3_MOE_CONFIG,
    gpt2_tensors,
    gpt_oss_tensors,
    qwen3_moe_tensors,
    write,
    write_shards,
)


def logits(folder: Path, **options: Any) -> Tensor:
    with torch.no_grad():
        return load_model(folder, dtype="float32", **options)(torch.tensor([[1, 5, 9, 2, 7]]))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(OssiaError) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unpacked_gpt_oss() -> dict[str, Tensor]:
    """The tensors of gpt-oss with its experts in bfloat16, as a merged fine-tune has them."""
    tensors = gpt_oss_tensors()
    for i in range(LAYERS):
        for part, rows, cols in (("gate_up", 2 * INTER, HIDDEN), ("down", HIDDEN, INTER)):
            name = f"model.layers.{i}.mlp.experts.{part}_proj"
            packed = mxfp4.MXFP4(tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales"))
            dense = mxfp4.unpack(packed, torch.bfloat16)
            assert dense.shape == (EXPERTS, rows, cols)
            tensors[name] = dense.mT.contiguous()
    return tensors


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "mxfp4", "dequantize": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"bits": 4},
        {},
        None,
    ],
    ids=str,
)
def test_an_entry_of_quantization_does_not_count_for_plain_weights(
    entry: dict[str, Any] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {key: value for key, value in GPT_OSS_CONFIG.items() if key != "quantization_config"}
    clean = write(tmp_path / "clean", plain, unpacked_gpt_oss())
    stale = write(tmp_path / "stale", plain | {"quantization_config": entry}, unpacked_gpt_oss())
    assert torch.equal(logits(stale), logits(clean))
    assert expert_formats(read_config(stale)) == {ExpertFormat.DENSE}
    told = f"{stale / 'config.json'}: the weights are not quantized" in caplog.text
    assert told is bool(entry)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_it_counts_where_weights_are_quantized(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = qwen3_moe_tensors()
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.ones(16, 12).to(dtype)
    entry = {"quant_method": "some_method"}
    write(tmp_path, QWEN3_MOE_CONFIG | {"quantization_config": entry}, tensors)
    told = refusal(tmp_path)
    assert "key 'quantization_config.quant_method' is 'some_method', which is not" in told


IDLE_TENSORS = {
    "inv_freq of a layer": "model.layers.0.self_attn.rotary_emb.inv_freq",
    "inv_freq of the model": "model.rotary_emb.inv_freq",
    "inv_freq without a prefix": "layers.0.self_attn.rotary_emb.inv_freq",
    "a scale of keys": "model.layers.0.self_attn.k_scale",
    "a scale of values, vLLM": "model.layers.0.self_attn.attn.v_scale",
    "a scale of both": "model.layers.0.self_attn.kv_scale",
    "a scale, compressed-tensors": "model.layers.0.self_attn.k_proj.output_scale",
    "a zero point, compressed-tensors": "model.layers.0.self_attn.v_proj.output_zero_point",
    "a scale, ModelOpt": "model.layers.0.self_attn.v_proj.v_scale",
    "a scale of queries": "model.layers.0.self_attn.q_scale",
}


@pytest.mark.parametrize("case", IDLE_TENSORS)
def test_tensors_that_take_no_part_are_ignored(case: str, tmp_path: Path) -> None:
    tensors = qwen3_moe_tensors()
    write(tmp_path / "clean", QWEN3_MOE_CONFIG, tensors)
    write(tmp_path / "more", QWEN3_MOE_CONFIG, tensors | {IDLE_TENSORS[case]: torch.rand(3)})
    assert torch.equal(logits(tmp_path / "more"), logits(tmp_path / "clean"))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.mlp.experts.0.up_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.input_layernorm.weight",
        "model.mtp.norm.weight",
    ],
)
def test_others_are_refused_by_name_unless_they_are_to_be_ignored(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = qwen3_moe_tensors()
    write(tmp_path / "clean", QWEN3_MOE_CONFIG, tensors)
    more = write(tmp_path / "more", QWEN3_MOE_CONFIG, tensors | {name: torch.rand(3)})
    told = refusal(more)
    assert f"1 unknown: {name}" in told
    assert "--ignore-unknown-keys loads the model without them" in told
    found = logits(more, ignore_unknown_keys=True)
    assert torch.equal(found, logits(tmp_path / "clean"))
    assert f"ignoring 1 unknown: {name}" in caplog.text


def test_unknown_tensors_do_not_stand_for_missing_ones(tmp_path: Path) -> None:
    tensors = qwen3_moe_tensors()
    tensors["model.layers.0.other"] = tensors.pop("model.layers.0.mlp.gate.weight")
    write(tmp_path, QWEN3_MOE_CONFIG, tensors)
    assert "1 missing: model.layers.0.mlp.gate.weight" in refusal(
        tmp_path, ignore_unknown_keys=True
    )


UNKNOWN_KEYS = [
    {"my_experiment": "run 7"},
    {"logit_scale": 2.0, "other": [1]},
    {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    {"rope_scaling": {"rope_type": "default", "my_own": 1}},
    {"architectures": ["MyQwen3MoeForCausalLM"]},
]


@pytest.mark.parametrize("keys", UNKNOWN_KEYS, ids=str)
def test_unknown_keys_are_refused_by_name_unless_they_are_to_be_ignored(
    keys: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "clean", QWEN3_MOE_CONFIG, qwen3_moe_tensors())
    more = write(tmp_path / "more", QWEN3_MOE_CONFIG | keys, qwen3_moe_tensors())
    told = refusal(more)
    assert "unknown" in told
    assert "--ignore-unknown-keys" in told
    assert torch.equal(logits(more, ignore_unknown_keys=True), logits(tmp_path / "clean"))
    assert "ignoring unknown" in caplog.text


def test_known_keys_are_never_ignored(tmp_path: Path) -> None:
    write(tmp_path, GPT2_CONFIG | {"scale_attn_by_inverse_layer_idx": True}, gpt2_tensors())
    told = refusal(tmp_path, ignore_unknown_keys=True)
    assert "key 'scale_attn_by_inverse_layer_idx' is true" in told


def test_commands_take_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, QWEN3_MOE_CONFIG | {"my_own": 1}, qwen3_moe_tensors() | {"x": torch.ones(1)})
    assert main(["inspect", str(tmp_path)]) == 2
    assert "unknown key 'my_own'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--tensors", "--ignore-unknown-keys"]) == 0
    assert "x  ignored" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [".", "lm_head", "norm", "layers"])
def test_names_may_lack_their_prefix_all_or_some(cut: str, tmp_path: Path) -> None:
    """Base models are saved without it; some programs strip only part."""
    for config, tensors, prefix in (
        (QWEN3_MOE_CONFIG, qwen3_moe_tensors(), "model."),
        (GPT_OSS_CONFIG, gpt_oss_tensors(), "model."),
        (GPT2_CONFIG, gpt2_tensors("transformer."), "transformer."),
    ):
        family = str(config["model_type"])
        short = {n.removeprefix(prefix) if cut in n else n: t for n, t in tensors.items()}
        write(tmp_path / family, config, tensors)
        write_shards(tmp_path / f"{family}-short", config, short)
        assert torch.equal(logits(tmp_path / f"{family}-short"), logits(tmp_path / family))


def test_a_name_with_and_without_its_prefix_is_refused(tmp_path: Path) -> None:
    tensors = qwen3_moe_tensors()
    write(tmp_path, QWEN3_MOE_CONFIG, tensors | {"norm.weight": torch.rand(12)})
    assert "1 unknown: norm.weight" in refusal(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_config_may_be_written_on_windows(encoding: str, tmp_path: Path) -> None:
    write(tmp_path / "clean", GPT2_CONFIG, gpt2_tensors())
    write(tmp_path / "other", GPT2_CONFIG, gpt2_tensors())
    text = json.dumps(GPT2_CONFIG, indent=1).replace("\n", "\r\n")
    (tmp_path / "other" / "config.json").write_bytes(text.encode(encoding))
    assert torch.equal(logits(tmp_path / "other"), logits(tmp_path / "clean"))
