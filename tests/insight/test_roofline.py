"""Bounds on speed: by hand, by simulation, and against published figures."""

from __future__ import annotations

import random

import pytest

from ossia.config import MoEConfig
from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.insight.hardware import HARDWARE, MEASURED, Hardware, measured, named
from ossia.insight.roofline import (
    decoding,
    experts_touched,
    knee,
    largest_batch,
    prompt,
    training_hours,
)

H100 = HARDWARE["h100"]
ROUND = Hardware("round", 1e12, 1e12, 1e15, ("a test",))


def test_one_sequence_of_gpt2_reads_all_weights_and_its_keys_and_values() -> None:
    """In float32: every weight but the unused rows of the position table, and 2 x 12 x 768 numbers
    for each of 100 positions.
    """
    read = 4 * (124_439_808 - 1023 * 768) + 100 * 4 * 2 * 12 * 768
    bound = decoding(PRESETS["gpt2"], ROUND, 1, 100)
    assert bound.is_memory_bound
    assert bound.tokens_per_second == pytest.approx(1e12 / read)


def test_a_batch_reads_weights_once_and_keys_and_values_each() -> None:
    one, ten = (decoding(PRESETS["qwen3-8b"], ROUND, n, 500) for n in (1, 10))
    kv = 500 * 2 * 36 * 8 * 128 * 2
    row = 4096 * 2  # of the embedding
    assert ten.memory_seconds - one.memory_seconds == pytest.approx(9 * (kv + row) / 1e12)
    assert one.compute_seconds is not None
    assert ten.compute_seconds == pytest.approx(10 * one.compute_seconds)
    assert ten.tokens == 10


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_experts_touched_are_those_of_random_choices(name: str, batch: int) -> None:
    moe = PRESETS[name].layers[0].feedforward
    assert isinstance(moe, MoEConfig)
    draw, rounds = random.Random(0), 2000
    touched = sum(
        len(
            {
                e
                for _ in range(batch)
                for e in draw.sample(range(moe.num_experts), moe.experts_per_token)
            }
        )
        for _ in range(rounds)
    )
    assert experts_touched(moe, batch) == pytest.approx(touched / rounds, rel=0.01)


@pytest.mark.parametrize("name", ["gpt2-xl", "qwen3-0.6b", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_the_knee_is_the_first_batch_that_compute_bounds(name: str) -> None:
    config = PRESETS[name]
    found = knee(config, H100, 16)
    assert found is not None
    assert decoding(config, H100, found - 1, 16).is_memory_bound
    assert not decoding(config, H100, found, 16).is_memory_bound


def test_long_texts_have_no_knee() -> None:
    """Each sequence then reads more bytes than the ridge of the machine allows for its FLOPs."""
    assert knee(PRESETS["gpt-oss-20b"], H100, 100_000) is None
    assert not decoding(PRESETS["gpt-oss-20b"], H100, 1 << 20, 100).is_memory_bound
    assert knee(PRESETS["gpt-oss-20b"], HARDWARE["m4-max"], 16) is None  # of unknown rate


def test_a_prompt_unembeds_its_last_token() -> None:
    config = PRESETS["gpt2"]
    bound = prompt(config, ROUND, 2, 512)
    layers = 12 * 12 * 768 * 768  # weights of the matrices
    scores = 4 * 768 * 12 * (512 * 513 // 2)
    flops = 2 * (2 * layers * 512 + 2 * 50257 * 768 + scores)
    assert bound.compute_seconds == pytest.approx(flops / 1e15)
    assert bound.tokens == 2


def test_texts_that_fit_beside_the_weights() -> None:
    config = PRESETS["gpt-oss-20b"]
    each = 24 * 2 * 8 * 64 * 2 * (1000 + 128) // 2  # half of the layers keep 128 positions
    assert largest_batch(config, 80e9, 1000) == int((80e9 - 13_761_264_768) // each)
    assert largest_batch(config, 13e9, 1000) == 0


def test_training_takes_six_flops_a_weight_and_token() -> None:
    """For short texts: 6 N D (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361)."""
    hours = training_hours(PRESETS["gpt2-xl"], ROUND, 1e9, 1, 0.5)
    matrices = 48 * 12 * 1600 * 1600 + 50257 * 1600
    assert hours == pytest.approx(6 * matrices * 1e9 / 0.5e15 / 3600, rel=1e-3)
    assert training_hours(PRESETS["gpt2-xl"], HARDWARE["m3-ultra"], 1e9, 1, 0.5) is None


def test_published_hardware_says_where() -> None:
    for machine in HARDWARE.values():
        assert machine.sources
        assert all(source.startswith("https://") for source in machine.sources)
        assert not machine.is_measured
    assert (H100.memory_bytes, H100.read_bytes_per_second) == (80e9, 3.35e12)
    # NVIDIA prints 1,979 TFLOP/s with sparsity, which doubles the rate.
    assert H100.flops == 1979e12 / 2


def test_hardware_by_name() -> None:
    assert named("H200") is HARDWARE["h200"]
    cpu = named("cpu:16:205.5")
    assert (cpu.read_bytes_per_second, cpu.memory_bytes) == (205.5e9, None)
    assert cpu.flops == 16 * 64 * 3e9
    assert named("cpu:1:20:0.4").flops == 0.4e12


@pytest.mark.parametrize("name", ["h1000", "cpu", "cpu:0:20", "cpu:2:0", "cpu:two:20", ""])
def test_other_hardware_is_refused_by_name(name: str) -> None:
    with pytest.raises(OssiaError, match=f"--hardware {name}: "):
        named(name)


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": 0.0, "most": 2 * median}


def test_a_measured_machine() -> None:
    record = {
        "processor": "a processor",
        "memory_bytes": 24e9,
        "threads": 2,
        "read_bytes_per_second": {"one": spread(1e10), "all": spread(2e10)},
        "operations_per_second": {"slow": spread(1e11), "fast": spread(4e11)},
    }
    found = measured(record, "machine.json")
    assert (found.name, found.sources) == ("a processor", (MEASURED,))
    assert (found.read_bytes_per_second, found.flops) == (2e10, 4e11)
    del record["threads"]
    with pytest.raises(OssiaError, match=r"machine.json is not what"):
        measured(record, "machine.json")
