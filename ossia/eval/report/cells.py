"""Figures as the cells of a report's tables."""

from __future__ import annotations

from ossia.eval.results import Share
from ossia.insight.svg import number


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}%"


def signed(value: float) -> str:
    """A difference of shares, in points."""
    return number(100 * value, 1, sign=True)


def interval(found: Share) -> str:
    """The ends of a share's interval."""
    return f"{percent(found.interval.low)} to {percent(found.interval.high)}"


def with_interval(found: Share | None) -> str:
    """A share above its interval; nothing without questions."""
    if found is None or not found.questions:
        return ""
    return f'{percent(found.accuracy)}<br><span class="noise">{interval(found)}</span>'


def share(count: int, of: int) -> str:
    """A count of replies, with its share if it is not zero."""
    return f"{count} ({100 * count / of:.1f}%)" if count else "0"


def or_unknown(value: float | None, digits: int = 0) -> str:
    """A number; "?" for none."""
    return "?" if value is None else number(value, digits)
