"""A ladder beside another one: what each tells that the other does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.insight.svg import number
from ossia.ladder import beside, report
from ossia.ladder.results import Results
from ossia.ladder.statistics import Difference, Verdict, difference

COMMITTED = Path(__file__).parents[2] / "docs" / "ablation"


def signed(found: Difference | None) -> str:
    assert found is not None
    return f"{number(found.mean, 4, sign=True)} ± {found.half_interval:.4f}"


@pytest.fixture(scope="module")
def other() -> Results:
    return Results.from_json(json.loads((COMMITTED / "results.json").read_text()))


@pytest.fixture
def larger(other: Results) -> Results:
    """A ladder in which sinks are clear of the noise at the training length, and windows are not
    beyond it.
    """
    clear, unclear = difference([-0.05, -0.052, -0.048], [0.0] * 3), difference([0.1, -0.1], [0, 0])
    assert (clear.verdict, unclear.verdict) == (Verdict.BETTER, Verdict.UNCLEAR)
    rungs = [
        replace(rung, difference=clear) if rung.name == "sinks" else rung for rung in other.rungs
    ]
    comparisons = [
        replace(one, answer=unclear)
        if one.question == "rise to 1024 tokens, windows against none"
        else one
        for one in other.comparisons
    ]
    return replace(
        other,
        rungs=tuple(rungs),
        comparisons=tuple(comparisons),
        beside=beside.read(COMMITTED),
    )


def test_what_one_ladder_tells_and_the_other_does_not(larger: Results, other: Results) -> None:
    page = report.render(larger)
    there = {rung.name: rung.difference for rung in other.rungs}["sinks"]
    windows = {one.question: one.answer for one in other.comparisons}[
        "rise to 1024 tokens, windows against none"
    ]
    minus = "\N{MINUS SIGN}"
    assert (
        "Told here, and not by the other ladder: "
        f"Attention sinks ({minus}0.0500 ± 0.0050; in the other {signed(there)})."
    ) in page
    assert (
        "Told by the other ladder, and not here: Rise to 4 times the training length, windows "
        f"against none ({signed(windows)}; in the other 0.0000 ± 1.2706)."
    ) in page
    assert f"{other.rungs[0].costs.active_parameters:,} active parameters" in page
    assert Results.from_json(json.loads(json.dumps(larger.to_json()))) == larger
    assert "What this scale tells" not in report.render(other)


def test_ladders_of_other_lengths_answer_the_same_questions(other: Results) -> None:
    twice = [
        replace(one, question=one.question.replace("1024", "2048")) for one in other.comparisons
    ]
    longer = replace(
        other, plan=replace(other.plan, length=512), comparisons=tuple(twice), rungs=other.rungs[:3]
    )
    assert set(beside.differences(longer)) < set(beside.differences(other))
    questions = [name for name in beside.differences(longer) if name.startswith("Rise to 4 times")]
    assert len(questions) == 6
    assert beside.told(beside.differences(longer), beside.differences(other)) == []


def test_what_is_no_ladder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"command": "ossia ablate"}')
    with pytest.raises(OssiaError, match=r"--beside .*results.json: no results of `ossia ablate`"):
        beside.read(tmp_path)
    with pytest.raises(OssiaError, match="absent"):
        beside.read(tmp_path / "absent")
