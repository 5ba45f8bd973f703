"""Numbers as people write them: three digits and a unit."""

from __future__ import annotations

from ossia.insight.svg import number

_POWERS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COUNTS = ((1e12, " trillion"), (1e9, " B"), (1e6, " M"), (1e3, " k"))
_NBSP = "\N{NO-BREAK SPACE}"


def amount(value: float) -> str:
    """A count in billions (B), millions or thousands: "20.9 B"."""
    for size, unit in _COUNTS:
        if value >= 0.9995 * size:
            return digits(value / size) + unit.replace(" ", _NBSP)
    return digits(value)


def size(value: float) -> str:
    """Bytes in decimal units: "13.8 GB"."""
    return _with_prefix(value, "B")


def flops(value: float) -> str:
    return _with_prefix(value, "FLOP")


def rate(value: float) -> str:
    return _with_prefix(value, "FLOP/s")


def seconds(value: float) -> str:
    if value >= 1:
        return f"{digits(value)}{_NBSP}s"
    if value >= 1e-3:
        return f"{digits(value * 1e3)}{_NBSP}ms"
    return f"{digits(value * 1e6)}{_NBSP}µs"


def whole(value: float) -> str:
    return number(value, 0)


def digits(value: float) -> str:
    """Three significant digits, all that stand before the point, at most three after it; a whole
    number has no point.
    """
    if value == int(value):
        return number(value, 0)
    places = next(
        p for p, above in ((0, 99.95), (1, 9.995), (2, 0.9995), (3, 0.0)) if abs(value) >= above
    )
    return number(value, places)


def _with_prefix(value: float, unit: str) -> str:
    for power, prefix in _POWERS:
        if value >= 0.9995 * power:
            return f"{digits(value / power)}{_NBSP}{prefix}{unit}"
    return f"{digits(value)}{_NBSP}{unit}"
