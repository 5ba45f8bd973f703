"""Plots as inline SVG: no scripts, no fonts to fetch, colours from the page's style.

Plots are 460 units wide, so that their text is legible on a phone. Each has a title and a
description for screen readers. Lines differ in dashes as well as in colour, and are labelled at
their right ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH = 460
_ROW = 26  # height of a row in `intervals`
_LINE = 15  # height of a line of text
_LABELS = 140  # width of the names beside the rows

# The classes used below; a page includes this once in its <style>.
STYLE = """
svg.plot { display: block; width: 100%; max-width: 620px; height: auto; font-size: 12px; }
svg.plot text { fill: var(--ink); }
svg.plot .quiet { fill: var(--quiet); }
svg.plot .grid { stroke: var(--grid); stroke-width: 1; }
svg.plot .zero { stroke: var(--quiet); stroke-width: 1.5; }
svg.plot .seed { fill: none; stroke: var(--quiet); stroke-width: 1; }
svg.plot .mean { fill: var(--s0); }
svg.plot .error { stroke: var(--s0); stroke-width: 2; }
svg.plot .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.plot .s0 { stroke: var(--s0); }
svg.plot .s1 { stroke: var(--s1); stroke-dasharray: 7 3; }
svg.plot .s2 { stroke: var(--s2); stroke-dasharray: 2 3; }
svg.plot text.s0 { fill: var(--s0); stroke: none; }
svg.plot text.s1 { fill: var(--s1); stroke: none; }
svg.plot text.s2 { fill: var(--s2); stroke: none; }
"""
COLOURS_LIGHT = "--grid: #dcdcd8; --s0: #0b5cad; --s1: #b3420a; --s2: #5b7a00;"
COLOURS_DARK = "--grid: #3a3d42; --s0: #74b3f5; --s1: #f0965f; --s2: #b2d04a;"

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Heading:
    """A plot's title and description for screen readers; `name` is unique within its page."""

    name: str
    title: str
    description: str


@dataclass(frozen=True)
class Interval:
    """A row: a mean, half of its error bar and the values that it is the mean of."""

    name: str
    mean: float
    half: float | None  # None if unknown
    values: Sequence[float] = ()
    ends: tuple[float, float] | None = None  # of an error bar that is not symmetric

    @property
    def bar(self) -> tuple[float, float] | None:
        """Where the error bar begins and ends; None without one."""
        if self.ends is not None or self.half is None:
            return self.ends
        return self.mean - self.half, self.mean + self.half


@dataclass(frozen=True)
class Line:
    """A named line through points (x, y), which `dots` marks; at most three in a plot."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


class Scale:
    """Maps a range of numbers to a range of the drawing."""

    def __init__(self, values: Iterable[float], start: float, stop: float) -> None:
        found = list(values)
        margin = 0.04 * ((max(found) - min(found)) or abs(max(found)) or 1.0)
        self.low, self.high = min(found) - margin, max(found) + margin
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Round numbers within the range, at most the given count, each with its label."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step)
        found = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [(x, number(x, digits)) for x in found]


def number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with thousands separators and a true minus sign."""
    written = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if not any(c in "123456789" for c in written):
        written = written.lstrip("+-")
    return written.replace("-", "\N{MINUS SIGN}")


def power(value: float) -> tuple[float, str]:
    """The largest power of a thousand that is not above the value, and its text."""
    exponent = 3 * math.floor(math.log10(value) / 3)
    return 10.0**exponent, "10" + str(exponent).translate(_SUPERSCRIPT)


def intervals(heading: Heading, rows: Sequence[Interval], axis: str, *, zero: bool = False) -> str:
    """Rows of means (dots) with error bars and values (rings); `zero` adds a line at zero."""
    height = _ROW * len(rows) + 3 * _LINE
    bottom = _ROW * len(rows)
    ends = [end for row in rows for end in (row.mean, *(row.bar or ()))]
    values = [value for row in rows for value in row.values]
    x = Scale([*ends, *values, *([0.0] if zero else [])], _LABELS, WIDTH - 14)
    parts = [
        _line(x(at), 0, x(at), bottom, "grid")
        + _text(x(at), bottom + _LINE, label, "quiet", "middle")
        for at, label in x.ticks(5)
    ]
    if zero:
        parts.append(_line(x(0), 0, x(0), bottom, "zero"))
    middle = (_LABELS + WIDTH) / 2
    parts.append(_text(middle, bottom + 2 * _LINE + 4, axis, "quiet", "middle"))
    for i, row in enumerate(rows):
        y = _ROW * i + _ROW / 2
        parts.append(_text(_LABELS - 10, y + 4, row.name, "", "end"))
        if row.bar is not None:
            left, right = map(x, row.bar)
            parts.append(_line(left, y, right, y, "error"))
            parts += [_line(end, y - 4, end, y + 4, "error") for end in (left, right)]
        parts += [f'<circle class="seed" cx="{x(v)}" cy="{y}" r="3"/>' for v in row.values]
        parts.append(f'<circle class="mean" cx="{x(row.mean)}" cy="{y}" r="4.5"/>')
    return _plot(heading, height, parts)


def lines(
    heading: Heading,
    series: Sequence[Line],
    axes: tuple[str, str],
    *,
    marks: Sequence[tuple[float, str]] = (),
    zero: bool = False,
    height: int = 280,
) -> str:
    """Lines over two axes, each labelled at its right end.

    marks: labelled places on the first axis. zero: draw the second axis's zero.
    """
    top, bottom, right = 2 * _LINE, height - 3 * _LINE, WIDTH - 118
    x = Scale([p[0] for s in series for p in s.points], 44, right)
    y = Scale([*([0.0] if zero else []), *(p[1] for s in series for p in s.points)], bottom, top)
    parts = [_text(0, _LINE - 3, axes[1], "quiet", "start")]
    parts += [
        _line(44, y(at), right, y(at), "grid") + _text(38, y(at) + 4, label, "quiet", "end")
        for at, label in y.ticks(5)
    ]
    parts += [
        _text(x(at), bottom + _LINE + 2, label, "quiet", "middle") for at, label in x.ticks(4)
    ]
    parts.append(_text((44 + right) / 2, bottom + 2 * _LINE + 8, axes[0], "quiet", "middle"))
    if zero:
        parts.append(_line(44, y(0), right, y(0), "zero"))
    for at, label in marks:
        parts.append(_line(x(at), top, x(at), bottom, "zero"))
        parts.append(_text(x(at), top - 4, label, "quiet", "middle"))
    ends = apart([y(one.points[-1][1]) for one in series], _LINE)
    for i, (one, end) in enumerate(zip(series, ends, strict=True)):
        points = " ".join(f"{x(a)},{y(b)}" for a, b in one.points)
        parts.append(f'<polyline class="line s{i}" points="{points}"/>')
        if one.dots:
            parts += [
                f'<circle class="dot s{i}" cx="{x(a)}" cy="{y(b)}" r="4"/>' for a, b in one.points
            ]
        parts.append(_text(right + 6, end + 4, one.name, f"s{i}", "start"))
    return _plot(heading, height, parts)


def apart(places: Sequence[float], line: float) -> list[float]:
    """The places, moved down until lines of text of that height at them do not overlap."""
    found = list(places)
    order = sorted(range(len(found)), key=lambda i: found[i])
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + line)
    return found


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _plot(heading: Heading, height: float, parts: Iterable[str]) -> str:
    name = heading.name
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(heading.title)}</title>'
        f'<desc id="{name}d">{escape(heading.description)}</desc>{"".join(parts)}</svg>'
    )
