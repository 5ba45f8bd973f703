"""What each query sees, for each kind of layer, and how query heads share keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.config import AttentionConfig
from ossia.insight import facts
from ossia.insight.diagrams.columns import COLUMN, TOP, Columns
from ossia.insight.drawing import LINE, Drawing, wrapped
from ossia.insight.facts import Model
from ossia.insight.svg import Heading
from ossia.insight.units import whole

_SIDE = 92.0  # of a pattern
_SINK = 8.0  # width of the sink's column, and of the space beside it
_BETWEEN = 16.0  # two patterns
_PATTERN = _SIDE + 62  # height with its texts
_WINDOWS = 4  # that fit into the text shown
_TEXT = 512  # tokens of it where no model has a window
_HEADS = 56.0  # height of the heads


def attention(models: Sequence[Model], name: str = "attention") -> str:
    """Patterns over a text of four windows, and the heads."""
    columns = Columns(models)
    kinds = [list(facts.attentions(model.config).items()) for model in models]
    windows = [a.window for found in kinds for a, _ in found if a.window is not None]
    length = _WINDOWS * min(windows) if windows else _TEXT
    rows = max(-(-len(found) // 2) for found in kinds)
    for left, found in zip(columns.lefts, kinds, strict=True):
        for i, (kind, count) in enumerate(found):
            shown = min(2, len(found) - i // 2 * 2)
            width = shown * (_SIDE + 2 * _SINK) + (shown - 1) * _BETWEEN
            x = left + (COLUMN - width) / 2 + i % 2 * (_SIDE + 2 * _SINK + _BETWEEN)
            _pattern(columns.drawing, (x, TOP + i // 2 * _PATTERN), kind, length, count)
    y = TOP + rows * _PATTERN
    for left, found in zip(columns.lefts, kinds, strict=True):
        _heads(columns.drawing, left, y, found[0][0])
    words = f"Rows are queries, columns keys, of a text of {whole(length)} tokens."
    lines = wrapped(words, columns.drawing.width, "small")
    for i, line in enumerate(lines):
        columns.drawing.text((0, y + _HEADS + 46 + i * LINE), line, "small quiet")
    spoken = [f"{facts.pattern(m.config)}; {facts.grouping(m.config)}" for m in models]
    heading = Heading(name, "What each query attends to", columns.spoken(spoken))
    return columns.drawing.finish(heading, y + _HEADS + 37 + len(lines) * LINE)


def _pattern(
    drawing: Drawing,
    place: tuple[float, float],
    kind: AttentionConfig,
    length: int,
    layers: int,
) -> None:
    x, y = place
    if kind.sinks:
        drawing.rect((x, y), (_SINK, _SIDE), "sink")
    x += 2 * _SINK
    drawing.rect((x, y), (_SIDE, _SIDE), "frame")
    width = _SIDE * min(1.0, (kind.window or length) / length)
    corners = [(0, 0), (_SIDE, _SIDE), (_SIDE - width, _SIDE), (0, width)]
    drawing.polygon([(x + a, y + b) for a, b in corners], "attention")
    middle = x + _SIDE / 2
    reach = "full" if kind.window is None else f"window {whole(kind.window)}"
    drawing.text((middle, y + _SIDE + 15), reach, anchor="middle", room=_SIDE + 8)
    plural = "layer" if layers == 1 else "layers"
    drawing.text((middle, y + _SIDE + 30), f"{layers} {plural}", "quiet", anchor="middle")
    if kind.sinks:
        drawing.text((middle, y + _SIDE + 45), "with a sink", "quiet", anchor="middle")


def _heads(drawing: Drawing, left: float, y: float, kind: AttentionConfig) -> None:
    """Query heads in their groups, each above the key and value head that it reads."""
    group = kind.num_heads // kind.num_kv_heads
    room = COLUMN / kind.num_kv_heads
    gap = min(4.0, room * 0.3)
    across, side = _arranged(group, room - gap)
    step = side + side * 0.25
    rows = -(-group // across)
    bottom = y + 40
    unit = max(side, across * step - step * 0.2)
    width = min(room - gap, unit)
    total = kind.num_kv_heads * (width + gap) - gap
    for i in range(kind.num_kv_heads):
        x = left + (COLUMN - total) / 2 + i * (width + gap)
        for j in range(group):
            at = x + j % across * step, bottom - 4 - (rows - j // across) * step
            drawing.rect(at, (side, side), "attention", min(1.0, side / 4))
        drawing.rect((x, bottom), (width, 7), "cache", 1)
    middle = left + COLUMN / 2
    drawing.text((middle, bottom + 23), f"{kind.num_heads} query heads", anchor="middle")
    shared = f"{kind.num_kv_heads} heads of keys and values"
    drawing.text((middle, bottom + 37), shared, "quiet", anchor="middle")


def _arranged(group: int, room: float) -> tuple[int, float]:
    """How many of a group's squares stand side by side, in full rows, and their size: as large as
    fits.
    """
    sizes = [
        (min(8.0, room / (1.25 * across), 34 / (1.25 * (group // across))), across)
        for across in range(1, group + 1)
        if group % across == 0
    ]
    side, across = max(sizes)
    return across, max(side, 1.0)
