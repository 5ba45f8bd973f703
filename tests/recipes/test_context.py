"""`python -m recipes.stdlib extend`: the same weights, positions for a longer context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ossia
from ossia.checkpoint import packaged_model
from ossia.config import RoPE
from ossia.model import Decoder
from recipes.stdlib.command import app


def factor(decoder: Decoder) -> float:
    position = decoder.config.position
    assert isinstance(position, RoPE)
    assert position.yarn is not None
    return position.yarn.factor


def test_a_longer_context_is_yarn_by_a_larger_factor(ossia_command, tmp_path: Path) -> None:
    before = ossia.load_model("ossia-stdlib")
    context = before.config.context_length * 2
    out = tmp_path / "longer"
    assert ossia_command("extend", "--context", context, "--out", out, commands=app).code == 0
    after = ossia.load_model(out)
    assert after.config.context_length == context
    assert factor(after) == factor(before) * 2
    assert (out / "model.safetensors").read_bytes() == (
        packaged_model() / "model.safetensors"
    ).read_bytes()
    with torch.inference_mode():
        assert after(torch.arange(context)[None] % 2048).isfinite().all()


@pytest.mark.parametrize("context", [2, 1024])
def test_a_shorter_context_is_refused(ossia_command, tmp_path: Path, context: int) -> None:
    result = ossia_command(
        "extend", "--context", context, "--out", tmp_path / "shorter", commands=app
    )
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "already" in result.err
    assert not (tmp_path / "shorter").exists()


def test_a_model_without_yarn_is_refused(ossia_command, tmp_path: Path) -> None:
    model = tmp_path / "plain"
    model.mkdir()
    config = json.loads((packaged_model() / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "default"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text("{}")
    words = ("extend", "--model", model, "--context", 4096, "--out", tmp_path / "longer")
    result = ossia_command(*words, commands=app)
    assert (result.code, "does not use YaRN" in result.err) == (2, True)
