"""The ladder at another scale, precision and device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.errors import OssiaError
from ossia.insight.counts import count
from ossia.ladder import report
from ossia.ladder.plan import Plan, Scale
from ossia.ladder.run import Ablation
from ossia.ladder.summary import summarize


def test_a_scale_sets_what_is_not_set_alone() -> None:
    plan = Plan.at("gpu", {"steps": 1000, "seeds": 4})
    assert (plan.scale, plan.steps, plan.seeds, plan.dtype) == (Scale.GPU, 1000, 4, "bfloat16")
    assert 1.5e7 < count(plan.foot()).active_parameters < 2.5e7
    assert 1e7 < plan.steps * plan.batch_size * plan.length < 1e8
    assert Plan.at("cpu", {}) == Plan()
    with pytest.raises(OssiaError, match="--scale must be cpu or gpu, not huge"):
        Plan.at("huge", {})
    with pytest.raises(OssiaError, match="--scale must be cpu or gpu, not bogus"):
        Plan.at("bogus", {"scale": "bogus"})


def test_a_ladder_in_bfloat16_says_so(plan: Plan, tmp_path: Path) -> None:
    ladder = Ablation.start(replace(plan, dtype="bfloat16", steps=2, seeds=1), tmp_path / "out")
    assert ladder.train()
    results = summarize(ladder)
    assert "--dtype bfloat16" in results.command
    assert "16 tokens per sequence, in bfloat16." in report.render(results)


def test_a_ladder_goes_on_only_on_the_device_that_it_was_begun_on(
    plan: Plan, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ladder = Ablation.start(replace(plan, steps=1, seeds=1), out)
    ladder.train()
    file = out / "ladder.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "cuda", "card": "A CARD"}))
    results = summarize(Ablation(out))
    assert results.command.endswith(" --device cuda")
    page = report.render(results)
    assert "16 tokens per sequence, on one A CARD, in float32." in page
    assert "and A CARD the losses are the same bit for bit on the same kind of GPU" in page
    with pytest.raises(OssiaError, match="was begun on A CARD, and its losses would differ on cpu"):
        Ablation(out, seeds=2, device=torch.device("cpu")).train()


def test_what_cannot_be_compiled_is_refused(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_):
        raise RuntimeError("no compiler is here")

    monkeypatch.setattr("ossia.model.decoder._compiled", fail)
    ladder = Ablation.start(replace(plan, compile=True), tmp_path / "out")
    with pytest.raises(OssiaError, match=r"--compile: GPT-2 cannot be compiled \(no compiler is"):
        ladder.train()
