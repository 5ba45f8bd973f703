"""The section on what this ladder tells and another one, such as a smaller one, could not."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from ossia.insight import page
from ossia.insight.svg import number
from ossia.ladder.beside import differences, told
from ossia.ladder.report.words import marked, seeds, signed
from ossia.ladder.results import Results
from ossia.ladder.statistics import Difference


def section(results: Results) -> str:
    """Nothing if the ladder was put beside no other."""
    other = results.beside
    if other is None:
        return ""
    here, there = differences(results), other.differences
    rows = [
        [escape(name), marked(own), marked(there[name])]
        for name, own in here.items()
        if name in there
    ]
    return (
        "<h2>What this scale tells</h2>"
        f"<p>Beside it stands a ladder of {number(other.active_parameters, 0)} active parameters, "
        f"trained on {number(other.tokens, 0)} tokens with {seeds(other.seeds)}.</p>"
        + page.bullets(escape(sentence) for sentence in sentences(results))
        + page.table(["change in bits per byte", "here", "there"], rows)
    )


def sentences(results: Results) -> list[str]:
    """What stands clear of the noise in one of the two ladders only; nothing without another."""
    if results.beside is None:
        return []
    here, there = differences(results), results.beside.differences
    return [
        _listed("Told here, and not by the other ladder", here, there),
        _listed("Told by the other ladder, and not here", there, here),
    ]


def _listed(start: str, one: Mapping[str, Difference], other: Mapping[str, Difference]) -> str:
    names = [
        f"{name} ({signed(one[name])}; in the other {signed(other[name])})"
        for name in told(one, other)
    ]
    return f"{start}: {'; '.join(names) or 'nothing'}."
