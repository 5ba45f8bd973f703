"""A plot of curves, on axes that are linear or logarithmic, with each name at its curve's end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ossia.insight.drawing import LINE, Drawing, measure
from ossia.insight.svg import Heading, Scale, apart
from ossia.insight.units import whole

_WIDTH, _HEIGHT = 486.0, 270.0
_LABEL = 150.0  # room for the names at the ends of lines, at most
_TOP, _BOTTOM = 24.0, 44.0


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y), at most six in a plot; `mark` is a point with a dot."""

    name: str
    points: Sequence[tuple[float, float]]
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """What an axis shows. A logarithmic one has ticks at powers of its `base`, written by `words`;
    a linear one (None) has round numbers.
    """

    title: str
    words: Callable[[float], str] = whole
    base: int | None = None

    def scale(self, values: Iterable[float], start: float, stop: float) -> Scale | _Logarithmic:
        """Of the values, which are drawn from `start` to `stop`."""
        if self.base is None:
            return Scale(values, start, stop)
        return _Logarithmic(values, start, stop, self)


class _Logarithmic:
    def __init__(self, values: Iterable[float], start: float, stop: float, axis: Axis) -> None:
        assert axis.base is not None
        self.base, self.words = axis.base, axis.words
        found = [value for value in values if value > 0]
        unit = math.log(self.base)
        self.low, self.high = math.log(min(found)), math.log(max(found))
        if self.high - self.low < unit:
            self.low, self.high = self.low - unit / 2, self.high + unit / 2
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Powers of the base within the range, thinned evenly, each with its label; between few
        powers of ten also their double and their fivefold.
        """
        unit = math.log(self.base)
        first, last = math.ceil(self.low / unit - 1e-9), math.floor(self.high / unit + 1e-9)
        step = max(1, -(-(last - first + 1) // most))
        found = [float(self.base) ** power for power in range(first, last + 1, step)]
        if self.base == 10 and len(found) <= 2:
            fine = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
            found = [value for value in fine if self.low <= math.log(value) <= self.high]
        return [(value, self.words(value)) for value in found]


def plot(heading: Heading, curves: Sequence[Curve], across: Axis, up: Axis) -> str:
    """The curves as a finished drawing."""
    drawing = Drawing(_WIDTH)
    bottom = _HEIGHT - _BOTTOM
    points = [point for curve in curves for point in curve.points]
    y = up.scale((p[1] for p in points), bottom, _TOP)
    marks = [(y(value), text) for value, text in y.ticks(6)]
    left = max(measure(text) for _, text in marks) + 8
    right = _WIDTH - min(_LABEL, max(measure(curve.name) for curve in curves) + 8)
    x = across.scale((p[0] for p in points), left, right)
    drawing.text((0, 11), up.title, "quiet")
    for at, text in marks:
        drawing.line((left, at), (right, at), "grid")
        drawing.text((left - 6, at + 4), text, "quiet", anchor="end")
    edge = -math.inf
    for value, text in x.ticks(9):
        at = x(value)
        drawing.line((at, bottom), (at, bottom + 4), "grid")
        if at - measure(text) / 2 > edge + 8:
            drawing.text((at, bottom + LINE + 2), text, "quiet", anchor="middle")
            edge = at + measure(text) / 2
    drawing.text(
        ((left + right) / 2, bottom + 2 * LINE + 6), across.title, "quiet", anchor="middle"
    )
    for i, curve in enumerate(curves):
        drawing.polyline([(x(a), y(b)) for a, b in curve.points], f"series m{i}")
        if curve.mark is not None:
            drawing.circle((x(curve.mark[0]), y(curve.mark[1])), 4.5, f"dot m{i}")
    ends = apart([y(curve.points[-1][1]) for curve in curves], LINE)
    for i, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        place = x(curve.points[-1][0]) + 7, end + 4
        drawing.text(place, curve.name, f"end m{i}", room=_WIDTH - place[0])
    return drawing.finish(heading, max(_HEIGHT, max(ends) + 12))
