"""A drawing with a column for each model, its name above."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.insight.drawing import Drawing
from ossia.insight.facts import Model

COLUMN = 232.0
GAP = 22.0
TOP = 26.0  # below the names


class Columns:
    """The drawing and the left edge of each column."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = models
        self.lefts = [i * (COLUMN + GAP) for i in range(len(models))]
        self.drawing = Drawing(len(models) * (COLUMN + GAP) - GAP)
        for left, model in zip(self.lefts, models, strict=True):
            self.drawing.text(
                (left + COLUMN / 2, 12), model.name, "bold", anchor="middle", room=COLUMN
            )

    def spoken(self, texts: Sequence[str]) -> str:
        """A description for those who do not see the drawing: each model's text."""
        pairs = zip(self.models, texts, strict=True)
        return "; ".join(f"{model.name}: {text}" for model, text in pairs) + "."
