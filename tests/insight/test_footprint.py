"""Memory and lengths, against the estimates of training and by brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ossia.adapt.lora import LoRA
from ossia.config import ModelConfig
from ossia.families import PRESETS
from ossia.insight import footprint
from ossia.insight.counts import Part, flops_by_part, kv_bytes
from ossia.train import budget
from ossia.train.settings import TARGETS, FineTuneSettings
from tests import models
from tests.insight.test_flops import packed


@pytest.mark.parametrize(
    "config",
    [models.gpt2_like(), models.qwen3_moe_like(), packed(), PRESETS["gpt-oss-120b"]],
)
def test_lora_takes_what_fine_tuning_estimates(config: ModelConfig) -> None:
    learned = LoRA(footprint.RANK, 32.0, 0.0, TARGETS)
    estimate = budget.adapters(config, FineTuneSettings(model="m", data="d"), learned)
    found = footprint.lora(config)
    assert found.total == estimate.weights + estimate.gradients + estimate.optimizer
    assert found.trained * 4 == estimate.gradients


def test_training_holds_four_numbers_a_parameter() -> None:
    assert footprint.training_bytes(PRESETS["gpt2"]) == 16 * 124_439_808


@pytest.mark.parametrize("memory", [13.8e9, 14e9, 16e9])
def test_the_longest_text_fits_and_no_longer_one(memory: float) -> None:
    config = PRESETS["gpt-oss-20b"]
    longest = footprint.longest_context(config, memory)
    assert longest is not None
    assert footprint.run_bytes(config, longest) <= memory
    assert longest == config.context_length or footprint.run_bytes(config, longest + 1) > memory
    assert footprint.run_bytes(config, longest) == 13_761_264_768 + kv_bytes(config, longest)


def test_the_longest_text_has_bounds() -> None:
    config = PRESETS["gpt-oss-20b"]
    assert footprint.longest_context(config, 13e9) is None
    assert footprint.longest_context(config, 1e12) == 131_072


def test_attention_overtakes_where_gpt2s_formula_says() -> None:
    """A layer of GPT-2: 8 hidden² FLOPs for its matrices of attention and 16 for its MLP, in pairs
    of a multiplication and an addition, and 4 hidden for each position: equal at 2 hidden.
    """
    assert footprint.attention_overtakes(PRESETS["gpt2-xl"]) == 2 * 1600


@pytest.mark.parametrize("name", ["gpt-oss-20b", "qwen3-30b-a3b", "qwen3-0.6b"])
def test_attention_overtakes_at_the_first_such_token(name: str) -> None:
    config = PRESETS[name]
    found = footprint.attention_overtakes(config)
    assert found is not None

    def attention_costs_more(length: int) -> bool:
        flops = flops_by_part(config, length)
        attention = flops[Part.ATTENTION] + flops[Part.SCORES]
        return attention >= sum(flops.values()) - attention - flops[Part.UNEMBEDDING]

    assert attention_costs_more(found)
    assert found == 1 or not attention_costs_more(found - 1)


def test_windows_in_every_layer_never_let_attention_overtake() -> None:
    config = PRESETS["gpt-oss-20b"]
    config = replace(config, layers=config.layers[:1] * 4)
    assert footprint.attention_overtakes(config) is None
