"""What a ladder tells that another one, such as one of smaller models, could not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ossia.errors import OssiaError
from ossia.ladder.results import Beside, Results, Topic
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import Difference, Verdict
from ossia.system.files import read_json


def read(place: Path) -> Beside:
    """Of another ladder's folder, or its results.json. Raises OssiaError for anything else."""
    file = place / "results.json" if place.is_dir() else place
    data = read_json(file)
    try:
        results = Results.from_json(data)
    except ValueError as error:
        raise OssiaError(f"--beside {file}: no results of `ossia ablate` ({error})") from error
    return Beside(
        active_parameters=results.rungs[0].costs.active_parameters,
        tokens=results.tokens,
        seeds=results.plan.seeds,
        differences=differences(results),
    )


def differences(results: Results) -> dict[str, Difference]:
    """What ladders of any size have answers to: the change that each rung makes, by its title, and
    the questions about texts of `REACH` times the training length.
    """
    found = {rung.title: rung.difference for rung in results.rungs if rung.difference is not None}
    start = f"rise to {REACH * results.plan.length} tokens"
    for one in results.comparisons:
        if one.about is Topic.LENGTH and one.question.startswith(start):
            question = one.question.replace(start, f"Rise to {REACH} times the training length")
            found[question] = one.answer
    return found


def told(here: Mapping[str, Difference], there: Mapping[str, Difference]) -> list[str]:
    """What stands clear of the noise here, and there does not or points the other way, of what both
    have.
    """
    return [
        name
        for name, own in here.items()
        if name in there
        and own.verdict is not Verdict.UNCLEAR
        and own.verdict is not there[name].verdict
    ]
