"""`ossia inspect`: a preset or a checkpoint in words, in JSON, and tensor by tensor."""

import json


def test_a_preset_in_words(ossia_command):
    out = ossia_command("inspect", "gpt-oss-20b").out
    for words in (
        "20,914,757,184",
        "3,608,307,264",
        "13.76 GB",
        "3.71 GB",
        "layers 0,2,...,22",
        "64 query heads, 8 key/value heads of 64, window 128, sinks, bias",
        "4 of 32 experts 2,880 wide in MXFP4",
        "top-k, then softmax",
        "YaRN x32 from 4,096 tokens",
        "131,072",
    ):
        assert words in out


def test_the_model_inside_the_package_by_its_name(ossia_command):
    record = json.loads(ossia_command("inspect", "ossia-stdlib", "--json").out)
    assert record["parameters"] == 8_521_266


def test_json_holds_the_counts_and_the_config(ossia_command):
    record = json.loads(ossia_command("inspect", "gpt2", "--json").out)
    assert record["parameters"] == 124_439_808
    assert record["config"]["position"] == {"type": "LearnedPositions"}
    assert len(record["config"]["layers"]) == 12
    assert "tensors" not in record


def test_tensors_of_many_layers_and_experts_are_one_line(ossia_command):
    out = ossia_command("inspect", "qwen3-30b-a3b", "--tensors").out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (
        "model.layers.0-47.mlp.experts.0-127.up_proj.weight -> "
        "layers.0-47.feedforward.gate_up.weight[0-127, 1::2] (768, 2048)"
    ) in lines
    assert len(lines) < 50


def test_a_checkpoint_counts_what_lies_on_disk(ossia_command, model_folder):
    result = ossia_command("inspect", model_folder, "--json", "--tensors")
    record = json.loads(result.out)
    assert result.code == 0
    size = (model_folder / "model.safetensors").stat().st_size
    assert record["file_bytes"] == size
    assert 0 < size - record["checkpoint_bytes"] < 10_000  # the header
    router = "layers.0,1.feedforward.router.weight"
    (kind,) = [move["kind"] for move in record["tensors"] if move["parameter"] == router]
    assert kind == "(4, 32) float32"
    assert record["ignored"] == []
