"""The ladder: each rung is the last config with one field replaced, and no rung buys parameters."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest

from ossia.config import ModelConfig, MoEConfig
from ossia.errors import OssiaError
from ossia.families import PRESETS
from ossia.insight.counts import count
from ossia.ladder.rungs import RUNGS, chosen, climb, gpt2

FOOT = gpt2(layers=4, hidden=96, length=256, vocab_size=1024)
STEPS = climb(FOOT, RUNGS)


def differences(one: object, other: object, place: str = "") -> set[str]:
    """The fields in which two configs differ, as deep as they are of the same type."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return set().union(*(differences(a, b, place) for a, b in zip(one, other, strict=True)))
    if is_dataclass(one) and type(one) is type(other):
        return set().union(
            *(
                differences(getattr(one, f.name), getattr(other, f.name), f"{place}.{f.name}")
                for f in fields(one)
            )
        )
    return set() if one == other else {place.removeprefix(".")}


@pytest.mark.parametrize("index", range(1, len(STEPS)), ids=[r.name for r in RUNGS])
def test_a_rung_replaces_its_field_and_nothing_else(index: int) -> None:
    (_, before), (rung, after) = STEPS[index - 1 : index + 1]
    found = differences(before, after)
    assert found
    inside = rung.field + "."
    assert all(place == rung.field or place.startswith(inside) for place in found), found


def test_the_foot_is_gpt2_and_the_top_gpt_oss_but_for_its_size() -> None:
    """What still differs at the top is named in the module: the unembedding, and YaRN."""
    shape = {"vocab_size", "hidden_size", "context_length", "layers", "bos_id", "eos_ids", "pad_id"}
    foot, gpt2_small = STEPS[0][1], PRESETS["gpt2"]
    sizes = {"dtype", "init_std", *shape}
    assert differences(foot, gpt2_small) <= sizes
    assert differences(foot.layers[0], gpt2_small.layers[0]) <= {
        "attention.num_heads",
        "attention.num_kv_heads",
        "attention.head_dim",
        "feedforward.intermediate_size",
    }
    top, gpt_oss = STEPS[-1][1], PRESETS["gpt-oss-20b"]
    assert differences(top, gpt_oss) <= {*sizes, "tied_embeddings", "position.yarn"}
    for ours, theirs in zip(top.layers, gpt_oss.layers, strict=False):
        assert differences(ours, theirs) <= {
            "attention.num_heads",
            "attention.num_kv_heads",
            "attention.head_dim",
            "attention.window",
            "feedforward.num_experts",
            "feedforward.experts_per_token",
            "feedforward.intermediate_size",
        }
        assert (ours.attention.window is None) == (theirs.attention.window is None)


@pytest.mark.parametrize("hidden", [96, 192, 768])
def test_the_mixture_has_as_many_active_parameters_as_the_network_it_replaces(hidden: int) -> None:
    foot = gpt2(layers=4, hidden=hidden, length=256, vocab_size=1024)
    configs: dict[str, ModelConfig] = {rung.name: config for rung, config in climb(foot, RUNGS)}
    dense, mixture = count(configs["swiglu"]), count(configs["moe"])
    assert mixture.active_parameters == pytest.approx(dense.active_parameters, rel=0.01)
    assert mixture.parameters > 2 * dense.parameters
    assert count(configs["gpt2"]).active_parameters == pytest.approx(
        dense.active_parameters, rel=0.01
    )
    assert isinstance(configs["moe"].layers[0].feedforward, MoEConfig)


def test_rungs_are_chosen_by_name_in_the_ladders_order() -> None:
    assert [rung.name for rung in chosen("sinks, rope")] == ["rope", "sinks"]
    assert chosen("all") == RUNGS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("rope,relu", "'relu' is none of dropout, rope"),
        ("", "'' is none of"),
        ("moe", "moe needs swiglu"),
        ("swiglu,mxfp4", "mxfp4 needs moe"),
    ],
)
def test_rungs_that_cannot_be_climbed_are_refused(names: str, message: str) -> None:
    with pytest.raises(OssiaError, match=message):
        chosen(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 128}, "--hidden must be a multiple of 96, not 128"),
        ({"hidden": 0}, "--hidden must be a multiple of 96"),
        ({"layers": 0}, "--layers must be at least 1"),
    ],
)
def test_sizes_that_a_rung_could_not_divide_are_refused(change: dict, message: str) -> None:
    with pytest.raises(OssiaError, match=message):
        gpt2(**({"layers": 2, "hidden": 96, "length": 64, "vocab_size": 300} | change))
