"""Curves over logarithmic axes: bounds on speed by batch, and the cost of context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from ossia.insight.counts import flops_by_part, kv_bytes
from ossia.insight.diagrams.plot import Axis, Curve, plot
from ossia.insight.facts import Model
from ossia.insight.hardware import Hardware
from ossia.insight.roofline import decoding, knee
from ossia.insight.svg import Heading
from ossia.insight.units import digits, flops, size, whole

_BATCHES = sorted({round(2 ** (i / 2)) for i in range(21)})


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
    x = Axis("sequences decoded together", base=2)
    y = Axis("tokens per second, at most", digits, base=10)
    return plot(Heading(name, title, f"{ends}."), curves, x, y)


def _bound(model: Model, hardware: Hardware, context: int) -> Curve:
    def speed(batch: int) -> float:
        return decoding(model.config, hardware, batch, context).tokens_per_second

    found = knee(model.config, hardware, context)
    if found is None or found > _BATCHES[-1]:
        return Curve(model.name, [(b, speed(b)) for b in _BATCHES])
    batches = sorted({*_BATCHES, found})
    return Curve(model.name, [(b, speed(b)) for b in batches], (found, speed(found)))


def context(models: Sequence[Model], name: str = "context") -> str:
    """FLOPs of a token by its position, each model up to its context."""
    curves = [
        Curve(m.name, [(n, sum(flops_by_part(m.config, n).values())) for n in _lengths(m)])
        for m in models
    ]
    heading = _spoken(name, "FLOPs of a token by its position", curves, flops)
    x, y = Axis("position in the text", base=2), Axis("FLOP per token", flops, base=10)
    return plot(heading, curves, x, y)


def cache(models: Sequence[Model], name: str = "cache") -> str:
    """Bytes of keys and values by the length of the text, each model up to its context."""
    curves = [Curve(m.name, [(n, kv_bytes(m.config, n)) for n in _lengths(m)]) for m in models]
    heading = _spoken(name, "Keys and values by the length of the text", curves, size)
    x, y = Axis("tokens in the text", base=2), Axis("bytes of keys and values", size, base=10)
    return plot(heading, curves, x, y)


def _spoken(
    name: str, title: str, curves: Iterable[Curve], words: Callable[[float], str]
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
