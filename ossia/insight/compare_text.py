"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ossia.insight.compare import Comparison
from ossia.insight.lineage import Finding
from ossia.insight.measured import HEAD, Point


def markdown(comparison: Comparison, lineage: Sequence[Finding], measured: Sequence[Point]) -> str:
    """Tables with a column for each model."""
    names = [model.name for model in comparison.models]
    lines = [f"# {' vs '.join(names)}"]
    for group in comparison.groups:
        rows = [[row.label, *row.cells] for row in group.rows]
        lines += ["", f"## {group.title}", "", *_table(["", *names], rows)]
        if group.hardware is not None:
            lines += ["", f"{group.note}. Source: {', '.join(group.hardware.sources)}."]
    rows, effects = [], any(finding.effect for finding in lineage)
    for finding in lineage:
        cells = [f"{f}; {c}" for f, c in zip(finding.facts, finding.costs, strict=True)]
        effect = [finding.effect or "not measured"] if effects else []
        rows.append([finding.title, *cells, *effect])
    head = ["", *names, *(["effect on the ladder"] if effects else [])]
    lines += ["", "## Choice by choice", "", *_table(head, rows)]
    if measured:
        points = [point.cells for point in measured]
        lines += ["", "## Measured by this project", "", *_table(HEAD, points)]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
