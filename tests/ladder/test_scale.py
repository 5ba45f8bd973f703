"""The ladder at another scale, precision and device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from ossia.errors import OssiaError
from ossia.insight.counts import count
from ossia.ladder import report, rungs
from ossia.ladder.plan import Plan, Scale
from ossia.ladder.run import Ablation
from ossia.ladder.summary import summarize
from ossia.model import decoder


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


@pytest.mark.parametrize(
    "rung", [rungs.FOOT, rungs.DROPOUT, rungs.MXFP4], ids=lambda rung: rung.name
)
def test_layers_are_compiled_in_bfloat16_too(
    plan: Plan, rung: rungs.Rung, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the graphs, which run as they were traced: the step is that without --compile."""
    to_graphs = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **kw: to_graphs(function, backend="aot_eager", **kw)
    )
    plan = replace(plan, dtype="bfloat16", rungs="all", layers=2)
    ladder = Ablation.start(plan, tmp_path / "out")
    (config,) = (config for known, config in ladder.rungs if known == rung)
    settings = plan.settings(packed=rung == rungs.MXFP4, seed=0)
    if rung == rungs.MXFP4:
        settings = replace(settings, mxfp4_steps=settings.steps)  # rounded from the first on
    found = []
    decoder._compiled.cache_clear()
    counters.clear()
    try:
        for compiled in (False, True):
            trainer = ladder.trainer(config, settings, tmp_path)
            torch.manual_seed(0)  # of dropout
            assert not compiled or trainer.compile() is None
            torch.manual_seed(0)
            step = trainer.step()
            found.append((step.loss, step.gradient_norm))
        assert counters["stats"]["unique_graphs"] > 0
    finally:
        torch._dynamo.reset()
        decoder._compiled.cache_clear()
    assert found[1] == pytest.approx(found[0], rel=1e-2)
