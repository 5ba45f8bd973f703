"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ossia.insight.compare import Comparison
from ossia.insight.lineage import Finding
from ossia.insight.measured import Point
from ossia.insight.units import digits, whole


def markdown(comparison: Comparison, lineage: Sequence[Finding], measured: Sequence[Point]) -> str:
    """Tables with a column for each model."""
    names = [model.name for model in comparison.models]
    lines = [f"# {' vs '.join(names)}"]
    for group in comparison.groups:
        rows = [[row.label, *row.cells] for row in group.rows]
        lines += ["", f"## {group.title}", "", *_table(["", *names], rows)]
        if group.hardware is not None:
            lines += ["", f"{group.note}. Source: {', '.join(group.hardware.sources)}."]
    rows = []
    for finding in lineage:
        cells = [f"{f}; {c}" for f, c in zip(finding.facts, finding.costs, strict=True)]
        rows.append([finding.title, *cells, finding.effect or "not measured"])
    lines += ["", "## Choice by choice", "", *_table(["", *names, "effect on the ladder"], rows)]
    if measured:
        head = ["model", "batch", "tokens/s measured", "at most", "share", "on"]
        lines += ["", "## Measured by this project", "", *_table(head, _points(measured))]
    return "\n".join(lines) + "\n"


def _points(measured: Sequence[Point]) -> list[list[str]]:
    return [
        [
            point.model,
            whole(point.batch),
            digits(point.tokens_per_second),
            digits(point.bound),
            f"{100 * point.share:.0f} %",
            f"{point.machine}; {point.precision}",
        ]
        for point in measured
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
