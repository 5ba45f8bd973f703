"""Curves over logarithmic axes: bounds on speed by batch, and the cost of context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ossia.insight.counts import flops_by_part, kv_bytes
from ossia.insight.drawing import LINE, Drawing, measure
from ossia.insight.facts import Model
from ossia.insight.hardware import Hardware
from ossia.insight.roofline import decoding, knee
from ossia.insight.svg import Heading, apart
from ossia.insight.units import digits, flops, size, whole

_WIDTH, _HEIGHT = 486.0, 270.0
_LABEL = 150.0  # room for the names at the ends of lines, at most
_TOP, _BOTTOM = 24.0, 44.0
_BATCHES = sorted({round(2 ** (i / 2)) for i in range(21)})


@dataclass(frozen=True)
class _Curve:
    name: str
    points: Sequence[tuple[float, float]]
    mark: tuple[float, float] | None = None


def bounds(models: Sequence[Model], hardware: Hardware, context: int, name: str = "bounds") -> str:
    """Tokens per second of all sequences together, at most, by batch; a dot where compute takes
    over from memory as what bounds.
    """
    curves = [_bound(model, hardware, context) for model in models]
    title = f"Decoding on {hardware.name}: tokens per second, at most"
    ends = "; ".join(
        f"{c.name} {whole(c.points[0][1])} alone, {whole(c.points[-1][1])} at {_BATCHES[-1]:,}"
        for c in curves
    )
    axes = ("sequences decoded together", "tokens per second, at most")
    return _plot(Heading(name, title, f"{ends}."), curves, axes, digits)


def _bound(model: Model, hardware: Hardware, context: int) -> _Curve:
    def speed(batch: int) -> float:
        return decoding(model.config, hardware, batch, context).tokens_per_second

    found = knee(model.config, hardware, context)
    if found is None or found > _BATCHES[-1]:
        return _Curve(model.name, [(b, speed(b)) for b in _BATCHES])
    batches = sorted({*_BATCHES, found})
    return _Curve(model.name, [(b, speed(b)) for b in batches], (found, speed(found)))


def context(models: Sequence[Model], name: str = "context") -> str:
    """FLOPs of a token by its position, each model up to its context."""
    curves = [
        _Curve(m.name, [(n, sum(flops_by_part(m.config, n).values())) for n in _lengths(m)])
        for m in models
    ]
    heading = _spoken(name, "FLOPs of a token by its position", curves, flops)
    return _plot(heading, curves, ("position in the text", "FLOP per token"), flops)


def cache(models: Sequence[Model], name: str = "cache") -> str:
    """Bytes of keys and values by the length of the text, each model up to its context."""
    curves = [_Curve(m.name, [(n, kv_bytes(m.config, n)) for n in _lengths(m)]) for m in models]
    heading = _spoken(name, "Keys and values by the length of the text", curves, size)
    return _plot(heading, curves, ("tokens in the text", "bytes of keys and values"), size)


def _spoken(
    name: str, title: str, curves: Iterable[_Curve], words: Callable[[float], str]
) -> Heading:
    ends = "; ".join(
        f"{c.name} {words(c.points[-1][1])} at {whole(c.points[-1][0])}" for c in curves
    )
    return Heading(name, title, f"{ends}.")


def _lengths(model: Model) -> list[int]:
    """From 64 tokens to the model's context, four to an octave: enough for the bend at a window."""
    longest = model.config.context_length
    steps = [round(2 ** (i / 4)) for i in range(24, 4 * math.ceil(math.log2(max(65, longest))))]
    return [*(n for n in steps if n < longest), longest]


class _Axis:
    """A logarithmic axis from a range of values to a range of the drawing."""

    def __init__(self, values: Iterable[float], start: float, stop: float, base: int) -> None:
        found = [value for value in values if value > 0]
        self.low, self.high = math.log(min(found)), math.log(max(found))
        if self.high - self.low < math.log(base):
            self.low, self.high = self.low - math.log(base) / 2, self.high + math.log(base) / 2
        self.start, self.stop, self.base = start, stop, base

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Powers of the base within the range, thinned evenly; between few powers of ten also their
        double and their fivefold.
        """
        unit = math.log(self.base)
        first, last = math.ceil(self.low / unit - 1e-9), math.floor(self.high / unit + 1e-9)
        step = max(1, -(-(last - first + 1) // most))
        found = [float(self.base) ** power for power in range(first, last + 1, step)]
        if self.base != 10 or len(found) > 2:
            return found
        fine = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
        return [value for value in fine if self.low <= math.log(value) <= self.high]


def _plot(
    heading: Heading,
    curves: Sequence[_Curve],
    axes: tuple[str, str],
    words: Callable[[float], str],
) -> str:
    drawing = Drawing(_WIDTH)
    bottom = _HEIGHT - _BOTTOM
    points = [point for curve in curves for point in curve.points]
    y = _Axis((p[1] for p in points), bottom, _TOP, 10)
    marks = [(y(value), words(value)) for value in y.ticks(6)]
    left = max(measure(text) for _, text in marks) + 8
    right = _WIDTH - min(_LABEL, max(measure(curve.name) for curve in curves) + 8)
    x = _Axis((p[0] for p in points), left, right, 2)
    drawing.text((0, 11), axes[1], "quiet")
    for at, text in marks:
        drawing.line((left, at), (right, at), "grid")
        drawing.text((left - 6, at + 4), text, "quiet", anchor="end")
    edge = -math.inf
    for value in x.ticks(9):
        text, at = whole(value), x(value)
        drawing.line((at, bottom), (at, bottom + 4), "grid")
        if at - measure(text) / 2 > edge + 8:
            drawing.text((at, bottom + LINE + 2), text, "quiet", anchor="middle")
            edge = at + measure(text) / 2
    drawing.text(((left + right) / 2, bottom + 2 * LINE + 6), axes[0], "quiet", anchor="middle")
    for i, curve in enumerate(curves):
        drawing.polyline([(x(a), y(b)) for a, b in curve.points], f"series m{i}")
        if curve.mark is not None:
            drawing.circle((x(curve.mark[0]), y(curve.mark[1])), 4.5, f"dot m{i}")
    ends = apart([y(curve.points[-1][1]) for curve in curves], LINE)
    for i, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        place = x(curve.points[-1][0]) + 7, end + 4
        drawing.text(place, curve.name, f"end m{i}", room=_WIDTH - place[0])
    return drawing.finish(heading, max(_HEIGHT, max(ends) + 12))
