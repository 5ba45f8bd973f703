"""Parameters, and the bytes that a decoded token reads, as areas on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ossia.insight.counts import Part, bytes_by_part, count, kv_bytes, parameters_by_part
from ossia.insight.diagrams.columns import COLUMN, TOP, Columns
from ossia.insight.drawing import LINE
from ossia.insight.facts import Model
from ossia.insight.svg import Heading
from ossia.insight.units import amount, size, whole

_SIDE = 176.0  # of the largest square
_LEAST = 0.8  # the height of a band that is drawn
_CACHE = "keys and values"
# From the top of a square down, as from a model's output to its input.
_PARTS = (
    Part.UNEMBEDDING,
    Part.EXPERTS,
    Part.ROUTER,
    Part.MLP,
    Part.ATTENTION,
    Part.LOOKUP,
    Part.NORM,
)
_COLOURS = {
    Part.UNEMBEDDING: "unembedding",
    Part.EXPERTS: "network",
    Part.ROUTER: "router",
    Part.MLP: "network",
    Part.ATTENTION: "attention",
    Part.LOOKUP: "embedding",
    Part.NORM: "ink",
    _CACHE: "cache",
}

Areas = Mapping[str, tuple[float, float]]  # of each part, in all and the filled share of it


def parameters(models: Sequence[Model], name: str = "parameters") -> str:
    """Parameters by part; those that one token uses are filled."""
    areas = [
        {str(part): found for part, found in parameters_by_part(model.config).items()}
        for model in models
    ]
    totals = [_words(model) for model in models]
    columns = Columns(models)
    height = _draw(columns, areas, amount, totals)
    heading = Heading(name, "Parameters by part", columns.spoken([t for t, _ in totals]))
    return columns.drawing.finish(heading, height)


def _words(model: Model) -> tuple[str, str]:
    counts = count(model.config)
    return f"{amount(counts.parameters)} parameters", f"{amount(counts.active_parameters)} active"


def read(models: Sequence[Model], context: int, name: str = "read") -> str:
    """Bytes read to decode one token after `context` others, by part."""
    areas, totals = [], []
    for model in models:
        parts: dict[str, float] = {**bytes_by_part(model.config)}
        parts[_CACHE] = kv_bytes(model.config, context)
        areas.append({part: (value, value) for part, value in parts.items()})
        totals.append((f"{size(sum(parts.values()))} a token", f"at {whole(context)} tokens"))
    columns = Columns(models)
    height = _draw(columns, areas, size, totals)
    heading = Heading(name, "Bytes read per token", columns.spoken([t for t, _ in totals]))
    return columns.drawing.finish(heading, height)


def _draw(
    columns: Columns,
    areas: Sequence[Areas],
    words: Callable[[float], str],
    totals: Sequence[tuple[str, str]],
) -> float:
    """The squares and their legends; the height of both."""
    drawing = columns.drawing
    scale = _SIDE / math.sqrt(max(_total(area) for area in areas))
    shown = [part for part in (*_PARTS, _CACHE) if any(part in area for area in areas)]
    bottom = TOP + _SIDE
    for left, area, (first, second) in zip(columns.lefts, areas, totals, strict=True):
        side = math.sqrt(_total(area)) * scale
        x, y = left + (COLUMN - side) / 2, bottom - side
        for part in shown:
            whole_part, used = area.get(part, (0.0, 0.0))
            height = side * whole_part / _total(area)
            if height >= _LEAST:
                pale = f"{_COLOURS[part]} pale"
                if used < whole_part:
                    drawing.rect((x, y), (side, height), pale)
                drawing.rect((x, y), (side * used / whole_part, height), _COLOURS[part])
            y += height
        middle = left + COLUMN / 2
        drawing.text((middle, bottom + 18), first, "bold", anchor="middle")
        drawing.text((middle, bottom + 33), second, "quiet", anchor="middle")
        for i, part in enumerate(shown):
            _entry(columns, left, bottom + 54 + i * LINE, part, area.get(part), words)
    return bottom + 54 + len(shown) * LINE


def _entry(
    columns: Columns,
    left: float,
    y: float,
    part: str,
    found: tuple[float, float] | None,
    words: Callable[[float], str],
) -> None:
    """A line of a legend: colour, part, and how much it is."""
    drawing = columns.drawing
    drawing.rect((left + 6, y - 8.5), (9, 9), _COLOURS[part], 1)
    drawing.text((left + 21, y), str(part), "quiet" if found is None else "")
    if found is None:
        text = "none"
    else:
        total, used = found
        text = words(total) if used == total else f"{words(used)} of {words(total)}"
    kind = "quiet" if found is None else ""
    drawing.text((left + COLUMN - 6, y), text, kind, anchor="end")


def _total(area: Areas) -> float:
    return sum(total for total, _ in area.values())
