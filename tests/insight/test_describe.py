"""A config in words: each choice that separates two architectures shows."""

from dataclasses import replace

import pytest

from ossia.config import ExpertFormat, Router
from ossia.families import PRESETS
from ossia.insight.describe import Subject, described, record


def words(config):
    return dict(described(Subject("it", config)))


def with_feedforward(config, **values):
    layers = tuple(
        replace(layer, feedforward=replace(layer.feedforward, **values)) for layer in config.layers
    )
    return replace(config, layers=layers)


def test_gpt2():
    found = words(PRESETS["gpt2"])
    assert found["positions"] == "learned"
    assert found["norm"] == "LayerNorm, eps 1e-05"
    assert found["vocabulary"] == "50,257, unembedding tied to the embedding"
    assert found["  attention"] == "12 query heads, 12 key/value heads of 64, full, bias"
    assert found["  feed-forward"] == "3,072 wide, GELU, bias"
    # The table of learned positions: 1024 x 768.
    assert found["active"].endswith("without 786,432 in lookup tables")


def test_qwen3():
    found = words(PRESETS["qwen3-0.6b"])
    assert found["positions"] == "RoPE, theta 1,000,000"
    assert found["norm"] == "RMSNorm, eps 1e-06"
    assert found["  attention"] == "16 query heads, 8 key/value heads of 128, full, QK-norm"
    assert found["  feed-forward"] == "3,072 wide, SwiGLU"
    assert found["active"] == "596,049,920 (596 million) per token"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "in MXFP4, SwiGLU clamped at 7, bias; router: top-k, then softmax"),
        ({"format": ExpertFormat.DENSE}, "in bfloat16,"),
        ({"router": Router.SOFTMAX_THEN_TOP_K}, "router: softmax, then top-k"),
        ({"router": Router.SOFTMAX_THEN_TOP_K_RENORMALIZED}, "softmax, top-k, renormalised"),
        ({"bias": False}, "clamped at 7; router"),
    ],
)
def test_experts(values, text):
    found = words(with_feedforward(PRESETS["gpt-oss-20b"], **values))
    assert text in found["  feed-forward"]


def test_layers_that_differ_are_described_apart():
    labels = [label for label, _ in described(Subject("it", PRESETS["gpt-oss-20b"]))]
    assert [label for label in labels if label.startswith("layers ")] == [
        "layers 0,2,...,22",
        "layers 1,3,...,23",
    ]
    assert "every layer" in words(PRESETS["gpt2"])


def test_a_record_names_the_type_of_each_part():
    config = record(Subject("it", PRESETS["qwen3-30b-a3b"]))["config"]
    assert config["type"] == "ModelConfig"
    assert config["position"] == {"type": "RoPE", "theta": 1e6, "yarn": None}
    assert config["layers"][0]["feedforward"]["type"] == "MoEConfig"
    assert config["layers"][0]["feedforward"]["activation"] == {"type": "SwiGLU"}
