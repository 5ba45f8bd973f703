"""Width against depth: each layer a stripe as wide as the hidden size, models on one scale."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.config import ModelConfig
from ossia.insight import facts
from ossia.insight.counts import Part, parameters_by_part
from ossia.insight.diagrams.columns import COLUMN, TOP, Columns
from ossia.insight.drawing import LINE, measure
from ossia.insight.facts import Model
from ossia.insight.svg import Heading
from ossia.insight.units import amount, digits, whole

_WIDEST = COLUMN - 50  # beside it stands the depth
_TALLEST = 250.0


def shape(models: Sequence[Model], name: str = "shape") -> str:
    """Width and depth of the models; layers with a window are paler than those that see all."""
    columns = Columns(models)
    drawing = columns.drawing
    across = _WIDEST / max(m.config.hidden_size for m in models)
    down = _TALLEST / max(len(m.config.layers) for m in models)
    bottom = TOP + 24 + _TALLEST
    for left, model in zip(columns.lefts, models, strict=True):
        config = model.config
        width, height = config.hidden_size * across, len(config.layers) * down
        x, y = left + (_WIDEST - width) / 2, bottom - height
        for i, layer in enumerate(config.layers):  # the first layer below
            window = layer.attention.window is not None
            at = bottom - (i + 1) * down
            drawing.rect((x, at), (width, 0.8 * down), "attention half" if window else "attention")
        middle = x + width / 2
        drawing.text((middle, y - 8), f"{whole(config.hidden_size)} wide", anchor="middle")
        edge = x + width + 7
        drawing.path(f"M{edge:.1f} {y:.1f}h4V{bottom:.1f}h-4", "wire")
        drawing.text((edge + 9, (y + bottom) / 2 + 4), f"{len(config.layers)}")
        drawing.text((edge + 9, (y + bottom) / 2 + 17), "deep", "small quiet")
        ratio = digits(config.hidden_size / len(config.layers))
        drawing.text(
            (left + _WIDEST / 2, bottom + 18), f"width / depth {ratio}", "quiet", anchor="middle"
        )
        each = _in_layers(model.config) / len(config.layers)
        drawing.text(
            (left + _WIDEST / 2, bottom + 33),
            f"{amount(each)} parameters a layer",
            "quiet",
            anchor="middle",
        )
    height = bottom + 42
    if any(layer.attention.window for m in models for layer in m.config.layers):
        height = _legend(columns, height)
    heading = Heading(
        name, "Width against depth", columns.spoken([facts.shape(m.config) for m in models])
    )
    return drawing.finish(heading, height)


def _legend(columns: Columns, y: float) -> float:
    """Its entries, side by side where they fit; the height below it."""
    x, drawing = 0.0, columns.drawing
    for kind, words in (("attention", "layer that sees all"), ("attention half", "with a window")):
        if x and x + 18 + measure(words, "small") > drawing.width:
            x, y = 0.0, y + LINE
        drawing.rect((x, y + 2), (12, 9), kind)
        drawing.text((x + 18, y + 10), words, "small quiet")
        x += 18 + measure(words, "small") + 14
    return y + 18


def _in_layers(config: ModelConfig) -> int:
    """Parameters of all layers; the last norm, of no weight beside them, counts with them."""
    ends = (Part.LOOKUP, Part.UNEMBEDDING)
    parts = parameters_by_part(config)
    return sum(total for part, (total, _) in parts.items() if part not in ends)
