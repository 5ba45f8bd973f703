"""The results of a ladder, against sums made here from the files of its runs."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest

from ossia.insight.svg import number
from ossia.ladder import report
from ossia.ladder.results import Results
from ossia.ladder.run import Ablation
from ossia.ladder.summary import summarize
from tests.ladder.conftest import small_plan

NAMES = ["gpt2", "rope", "windows", "sinks"]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    folder = tmp_path_factory.mktemp("ladder")
    plan = small_plan(folder, rungs="rope,windows,sinks", steps=16)
    ablation = Ablation.start(plan, folder / "out")
    ablation.train()
    return ablation


@pytest.fixture
def runs(ablation: Ablation) -> dict[str, list[dict]]:
    def read(name: str, seed: int) -> dict:
        return json.loads((ablation.out / "runs" / f"{name}-{seed}.json").read_text())

    return {name: [read(name, seed) for seed in range(2)] for name in NAMES}


def test_levels_and_differences_are_those_of_the_runs(
    ablation: Ablation, runs: dict[str, list[dict]]
) -> None:
    results = summarize(ablation)
    assert [rung.name for rung in results.rungs] == NAMES
    documents = ablation.text.held_out
    size = sum(d.bytes for d in documents)
    predicted = sum(d.tokens - 1 for d in documents)
    for i, rung in enumerate(results.rungs):
        bits = [run["bits_per_byte"] for run in runs[rung.name]]
        assert rung.bits_per_byte.by_seed == tuple(bits)
        assert rung.bits_per_byte.mean == statistics.mean(bits)
        nats = bits[0] * math.log(2) * size / predicted
        assert rung.loss.by_seed[0] == pytest.approx(nats)
        if i:
            below = [run["bits_per_byte"] for run in runs[NAMES[i - 1]]]
            differences = [a - b for a, b in zip(bits, below, strict=True)]
            assert rung.difference is not None
            assert rung.difference.by_seed == pytest.approx(differences)
    assert results.rungs[0].difference is None
    ends = [[run["bits_per_byte"] for run in runs[name]] for name in ("sinks", "gpt2")]
    assert results.climb.mean == pytest.approx(statistics.mean(ends[0]) - statistics.mean(ends[1]))


def test_rises_beyond_the_training_length_are_compared_by_seed(
    ablation: Ablation, runs: dict[str, list[dict]]
) -> None:
    results = summarize(ablation)
    asked = {c.question: c for c in results.comparisons}
    rises = {
        name: [
            r["longer"]["as trained"]["bits_per_byte"]["4"] - r["bits_per_byte"] for r in runs[name]
        ]
        for name in NAMES
    }
    for name, below in (("windows", "rope"), ("sinks", "windows")):
        answer = asked[f"rise to 64 tokens, {name} against none"].answer
        both = zip(rises[name], rises[below], strict=True)
        assert answer.by_seed == pytest.approx([a - b for a, b in both])
        assert f"{name} against none {number(answer.mean, 4, sign=True)}" in " ".join(
            report.findings(results)
        )
    # Learned positions cannot be read with YaRN; the rungs below windows and sinks can.
    assert sum("YaRN against plain RoPE" in question for question in asked) == 2
    assert sum("both with YaRN" in question for question in asked) == 4
    assert len(asked) == 12


def test_equal_compute_reads_every_curve_at_the_cheapest_rungs_end(
    ablation: Ablation, runs: dict[str, list[dict]]
) -> None:
    results = summarize(ablation)
    spent = {
        rung.name: rung.costs.training_flops_per_token * results.tokens for rung in results.rungs
    }
    assert results.equal_flops == pytest.approx(min(spent.values()))
    assert spent["windows"] < spent["rope"]
    for rung in results.rungs:
        for seed, run in enumerate(runs[rung.name]):
            steps = [point["step"] for point in run["curve"]]
            bits = [point["held_out_bits_per_byte"] for point in run["curve"]]
            step = 16 * results.equal_flops / spent[rung.name]
            assert rung.at_equal_flops.value.by_seed[seed] == pytest.approx(
                np.interp(step, steps, bits)
            )
    cheapest = min(spent, key=lambda name: spent[name])
    at_end = next(rung for rung in results.rungs if rung.name == cheapest)
    assert at_end.at_equal_flops.value.mean == pytest.approx(at_end.bits_per_byte.mean)


def test_the_report_shows_the_numbers_of_the_results(ablation: Ablation) -> None:
    results = summarize(ablation)
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results
    page = report.render(results)
    for rung in results.rungs:
        assert f"{rung.bits_per_byte.mean:.3f} ± {rung.bits_per_byte.deviation:.3f}" in page
        assert f"{rung.costs.parameters:,}" in page
        assert f"{rung.costs.kv_bytes_at_reach:,}" in page
        if rung.difference is not None:
            written = f"{rung.difference.mean:+.4f} ± {rung.difference.half_interval:.4f}"
            assert written.replace("-", "\N{MINUS SIGN}") in page
    assert results.command in page.replace("&#x27;", "'")
    assert "<script" not in page
    assert "were not measured" in page
    assert "http://" not in page
    assert "https://" not in page
