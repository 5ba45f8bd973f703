"""The committed results and page in docs/ablation: read, reproduced and in step with the ladder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ossia.insight.svg import number
from ossia.ladder import report
from ossia.ladder.results import Reading, Results
from ossia.ladder.rungs import FOOT, RUNGS
from ossia.ladder.statistics import Difference, Verdict, difference

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((DOCS / "ablation" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(committed: dict[str, Any]) -> Results:
    return Results.from_json(committed)


def test_results_are_written_as_they_are_read(committed: dict[str, Any], results: Results) -> None:
    assert json.dumps(results.to_json()) == json.dumps(committed)


def test_the_committed_page_is_the_one_that_the_command_writes(
    results: Results, tmp_path: Path
) -> None:
    report.write(results, tmp_path)
    for name in ("report.html", "results.json"):
        assert (tmp_path / name).read_bytes() == (DOCS / "ablation" / name).read_bytes()


def test_the_committed_results_are_of_the_ladder_as_it_is(results: Results) -> None:
    assert [rung.name for rung in results.rungs] == [rung.name for rung in (FOOT, *RUNGS)]
    assert results.measured is not None
    assert list(results.measured.rungs) == [rung.name for rung in results.rungs]
    for below, rung in zip(results.rungs, results.rungs[1:], strict=False):
        seeds = rung.bits_per_byte.by_seed, below.bits_per_byte.by_seed
        assert rung.difference == difference(*seeds)
    page = report.render(results)
    for name in ("rope", "sinks"):  # one figure each, over positions
        assert f'id="{name}t"' in page
    assert "RoPE + YaRN" in page


def test_the_docs_list_the_rungs_and_the_fields_that_they_change() -> None:
    text = (DOCS / "ablation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", text, re.MULTILINE)
    assert rows == [(rung.name, rung.field) for rung in RUNGS]


def test_the_docs_say_what_the_committed_results_say(results: Results) -> None:
    text = " ".join((DOCS / "ablation.md").read_text(encoding="utf-8").split())
    foot, *_, top = results.rungs
    climb = f"{foot.bits_per_byte.mean:.3f} to {top.bits_per_byte.mean:.3f} bits per byte"
    assert f"{climb} ({signed(results.climb, 3)})" in text
    clear = [
        r.difference
        for r in results.rungs
        if r.difference and r.difference.verdict is not Verdict.UNCLEAR
    ]
    _, *steps = re.findall(r"\((\S+ ± [0-9.]+)\)", text)
    assert steps == [*(signed(found, 3) for found in clear), signed(top.difference, 4)]
    assert results.command in text


def signed(found: Difference | None, digits: int) -> str:
    assert found is not None
    assert found.half_interval is not None
    return f"{number(found.mean, digits)} ± {found.half_interval:.{digits}f}"


def change(data: dict[str, Any], place: str, value: object) -> None:
    *owners, last = place.split(".")
    found: Any = data
    for name in owners:
        found = found[int(name) if name.isdecimal() else name]
    if value is None:
        del found[last]
    else:
        found[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("threads", "one", "threads must be int, not str"),
        ("rungs.3.loss.mean", None, r"rungs\[3\].loss.mean is missing"),
        ("rungs.3.costs", {}, r"rungs\[3\].costs is not a known field"),
        ("rungs.1.difference.verdict", "fine", r"rungs\[1\].difference.verdict: 'fine'"),
        ("rungs.0.longer.as trained.by_position", [1.0], r"by_position\[0\] must be dict"),
        ("measured.rungs.gpt2.training.median", True, "training.median must be float, not bool"),
    ],
)
def test_results_that_are_none_are_refused_by_place(
    committed: dict[str, Any], place: str, value: object, message: str
) -> None:
    data = deepcopy(committed)
    change(data, place, value)
    with pytest.raises(ValueError, match=message):
        Results.from_json(data)


def without_measurements(results: dict[str, Any]) -> None:
    del results["measured"]


def without_experts(results: dict[str, Any]) -> None:
    results["comparisons"] = [c for c in results["comparisons"] if c["about"] == "length"]
    for rung in results["rungs"]:
        rung["by_format"].pop("mxfp4", None)


@pytest.mark.parametrize(
    ("leave_out", "missing"),
    [
        (without_measurements, "decoding, tokens/s"),
        (without_experts, "Experts in four bits"),
    ],
)
def test_what_was_not_trained_or_measured_is_left_out(
    committed: dict[str, Any], leave_out: Callable[[dict[str, Any]], None], missing: str
) -> None:
    assert missing in report.render(Results.from_json(committed))
    data = deepcopy(committed)
    leave_out(data)
    assert missing not in report.render(Results.from_json(data))


def test_a_reading_beyond_the_training_length_has_a_row_of_its_own(results: Results) -> None:
    page = report.render(results)
    with_yarn = [rung for rung in results.rungs if Reading.YARN in rung.longer]
    assert page.count(" + YaRN</td>") == len(with_yarn)
