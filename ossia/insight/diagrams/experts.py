"""The feed-forward network of one layer: experts as squares to scale, active ones filled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ossia.config import LayerConfig, MLPConfig, ModelConfig, MoEConfig
from ossia.insight import facts
from ossia.insight.counts import Part, parameters_by_part
from ossia.insight.diagrams.columns import COLUMN, TOP, Columns
from ossia.insight.facts import Model
from ossia.insight.svg import Heading
from ossia.insight.units import amount

_TALLEST = 230.0
_BETWEEN = 2.0  # squares


def experts(models: Sequence[Model], name: str = "experts") -> str:
    """The largest kind of network of each model: area is parameters."""
    columns = Columns(models)
    drawing = columns.drawing
    grids = [_Grid(model.config) for model in models]
    scale = _scale(grids)
    height = max(grid.height(scale) for grid in grids)
    for left, grid in zip(columns.lefts, grids, strict=True):
        side, across = grid.side * scale, grid.across(scale)
        width = min(across, grid.count) * (side + _BETWEEN) - _BETWEEN
        x0, y0 = left + (COLUMN - width) / 2, TOP + height - grid.height(scale)
        active = grid.active()
        for i in range(grid.count):
            x, y = x0 + i % across * (side + _BETWEEN), y0 + i // across * (side + _BETWEEN)
            drawing.rect((x, y), (side, side), "network" if i in active else "network pale", 1)
        middle, y = left + COLUMN / 2, TOP + height + 18
        for i, text in enumerate(grid.words()):
            drawing.text(
                (middle, y + 15 * i), text, "" if i == 0 else "quiet", anchor="middle", room=COLUMN
            )
    spoken = [", ".join(grid.words()) for grid in grids]
    heading = Heading(name, "The feed-forward network of one layer", columns.spoken(spoken))
    return drawing.finish(heading, TOP + height + 56)


class _Grid:
    """One network as squares whose areas are numbers of parameters."""

    def __init__(self, config: ModelConfig) -> None:
        kinds = facts.networks(config)
        self.network = max(kinds, key=lambda kind: _size(config, kind) * _count(kind))
        self.count = _count(self.network)
        self.each = _size(config, self.network)
        self.side = math.sqrt(self.each)
        self.layers = kinds[self.network], len(config.layers)

    def across(self, scale: float) -> int:
        """Squares in a row: a power of two where the number is one, so that rows are full."""
        most = max(1, int((COLUMN + _BETWEEN) // (self.side * scale + _BETWEEN)))
        squarish = 2 ** math.ceil(math.log2(math.sqrt(self.count)))
        return min(most, squarish) if most >= squarish else 2 ** int(math.log2(most))

    def height(self, scale: float) -> float:
        rows = -(-self.count // self.across(scale))
        return rows * (self.side * scale + _BETWEEN) - _BETWEEN

    def active(self) -> set[int]:
        """Which squares are filled: as many as a token uses, spread as a router would."""
        if isinstance(self.network, MLPConfig):
            return {0}
        chosen: dict[int, None] = {}
        step = 0
        while len(chosen) < self.network.experts_per_token:  # multiples of the golden ratio
            chosen[int((0.31 + step * 0.6180339887) % 1 * self.count)] = None
            step += 1
        return set(chosen)

    def words(self) -> list[str]:
        if isinstance(self.network, MoEConfig):
            used = self.network.experts_per_token
            lines = [f"{used} of {self.count} experts active"]
            lines.append(f"{amount(self.each)} parameters each")
            lines.append(f"{amount(used * self.each)} of {amount(self.count * self.each)} used")
        else:
            lines = ["one dense network", f"{amount(self.each)} parameters", "all used"]
        if self.layers[0] < self.layers[1]:
            lines[0] += f", in {self.layers[0]} of {self.layers[1]} layers"
        return lines


def _scale(grids: Sequence[_Grid]) -> float:
    """Pixels per square root of a parameter: the most at which every grid fits."""
    low, high = 0.0, COLUMN / max(grid.side for grid in grids)
    for _ in range(40):
        middle = (low + high) / 2
        fits = all(
            grid.side * middle <= COLUMN and grid.height(middle) <= _TALLEST for grid in grids
        )
        low, high = (middle, high) if fits else (low, middle)
    return low


def _count(network: MLPConfig | MoEConfig) -> int:
    return network.num_experts if isinstance(network, MoEConfig) else 1


def _size(config: ModelConfig, network: MLPConfig | MoEConfig) -> float:
    """Parameters of one expert, or of the dense network."""
    alone = replace(config, layers=(LayerConfig(config.layers[0].attention, network),))
    part = Part.EXPERTS if isinstance(network, MoEConfig) else Part.MLP
    return parameters_by_part(alone)[part][0] / _count(network)
