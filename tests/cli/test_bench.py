"""`ossia bench`: JSON that a program can read, and words for people."""

import json
from dataclasses import replace

import pytest
import torch

from ossia.families import PRESETS
from ossia.measure import machine as machine_module

SHORT = ("--prompt", "5,9", "--tokens", "2", "--turns", "2")


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    """Bandwidth of a cache: what is tested is what is told, not how fast this machine is."""
    monkeypatch.setattr(machine_module, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr("ossia.measure.model.BUFFER_BYTES", 1 << 20)


def is_spread(value):
    return 0 < value["least"] <= value["median"] <= value["most"]


def test_alone_it_lists_its_commands(ossia_command):
    result = ossia_command("bench")
    assert result.code == 0
    assert "Measure read bandwidth and matrix products." in result.out


def test_a_checkpoint_is_measured(ossia_command, model_folder):
    result = ossia_command("bench", "cpu", model_folder, *SHORT, "--batch", "1,3", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["model"] == model_folder.name
    assert record["dtype"] == "float32"
    assert record["machine"]["threads"] == 1
    run = record["run"]
    assert 0 < run["load_seconds"] < run["first_token_seconds"]
    assert run["anonymous_bytes"] > 10**7  # Python's own at least
    speed = run["speed"]
    assert [prefill["tokens"] for prefill in speed["prefill"]] == [5, 9]
    assert [decoding["batch"] for decoding in speed["decoding"]] == [1, 3]
    for prefill in speed["prefill"]:
        assert is_spread(prefill["seconds"])
        assert is_spread(prefill["tokens_per_second"])
    for decoding in speed["decoding"]:
        assert is_spread(decoding["tokens_per_second"])
        assert is_spread(decoding["sampled"]["tokens_per_second"])
        assert is_spread(decoding["sampled"]["sampler_seconds"])
        assert is_spread(decoding["sampled"]["sampler_share"])
    assert is_spread(speed["decoding"][0]["share"])
    assert speed["decoding"][1]["share"] is None
    assert is_spread(speed["read_bytes_per_second"])


def test_a_preset_has_random_weights(ossia_command, monkeypatch):
    tiny = replace(PRESETS["gpt2"], layers=PRESETS["gpt2"].layers[:1], vocab_size=64)
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    result = ossia_command("bench", "cpu", "tiny", *SHORT, "--batch", "1", "--dtype", "bfloat16")
    assert result.code == 0
    assert "tiny with random weights, bfloat16" in result.out
    assert "loaded in" not in result.out
    assert "share of the limit" in result.out
    assert "at temperature 1, top-p 0.95" in result.out
    assert "sampler alone, ms" in result.out
    assert result.err == ""


def test_formats_are_those_asked_for(ossia_command, model_folder):
    arguments = ("bench", "cpu", model_folder, *SHORT, "--batch", "1")
    plain = json.loads(ossia_command(*arguments, "--json").out)
    changed = ("--dense", "int8", "--activations", "int8", "--kv", "int8")
    record = json.loads(ossia_command(*arguments, *changed, "--json").out)
    asked = ("dense", "activations", "kv")
    assert [plain[name] for name in asked] == [None, None, None]
    assert [record[name] for name in asked] == ["int8", "int8", "int8"]
    assert record["bytes_per_token"] < plain["bytes_per_token"]
    words = ossia_command(*arguments, *changed).out
    assert "dense weights in int8, prompts' activations in int8, keys and values in int8" in words


def test_stages_of_each_pass_are_shown_if_asked_for(ossia_command, model_folder):
    arguments = ("bench", "cpu", model_folder, *SHORT, "--batch", "1,3", "--backend", "cpu")
    assert json.loads(ossia_command(*arguments, "--json").out)["stages"] is None
    record = json.loads(ossia_command(*arguments, "--stages", "--json").out)
    names = ["prompt of 5", "prompt of 9", "step of one sequence", "step of 3 sequences"]
    assert [measured["name"] for measured in record["stages"]] == names
    for measured in record["stages"]:
        stages = measured["stages"]
        assert {"attention", "linear layers", "norms"} <= {stage["name"] for stage in stages}
        assert sum(stage["seconds"] for stage in stages) == pytest.approx(measured["seconds"])
    words = ossia_command(*arguments, "--stages").out
    assert all(name in words for name in (*names, "outside native operations"))


def test_the_packaged_model_is_the_default(ossia_command):
    result = ossia_command("bench", "cpu", *SHORT, "--batch", "1", "--threads", "1")
    assert result.code == 0
    assert "ossia-stdlib" in result.out
    assert torch.get_num_threads() == 1


def test_the_machine_in_words_and_in_json(ossia_command, monkeypatch):
    monkeypatch.setattr(machine_module, "_SECONDS", 1e-3)
    monkeypatch.setattr(machine_module, "_TOKENS", 8)
    monkeypatch.setattr(machine_module, "_SIZE", 64)
    words = ossia_command("bench", "machine", "--turns", "1")
    assert words.code == 0
    for label in ("processor", "huge pages", "GB/s", "torch float32, TFLOP/s", "MXFP4 experts"):
        assert label in words.out
    record = json.loads(ossia_command("bench", "machine", "--turns", "2", "--json").out)
    assert is_spread(record["read_bytes_per_second"]["all"])
    assert all(map(is_spread, record["operations_per_second"].values()))
    assert len(record["operations_per_second"]) == 4
    assert record["memory_bytes"] > record["available_bytes"] > 0
