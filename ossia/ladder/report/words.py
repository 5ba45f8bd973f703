"""The words and figures that all sections of the report share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ossia.insight import page, svg
from ossia.insight.svg import Interval, number
from ossia.ladder.results import Comparison, Topic
from ossia.ladder.statistics import Difference, OverSeeds, Verdict

VERDICTS = {
    Verdict.BETTER: "lower",
    Verdict.WORSE: "higher",
    Verdict.UNCLEAR: "within the noise",
}


def interval(name: str, found: OverSeeds) -> Interval:
    return Interval(name, found.mean, found.half_interval, found.by_seed)


def spoken(rows: Sequence[Interval]) -> str:
    return "; ".join(
        f"{r.name} {plain(r.mean)}" + (f" plus or minus {plain(r.half)}" if r.half else "")
        for r in rows
    )


def answers(comparisons: Iterable[Comparison], topic: Topic) -> str:
    """The comparisons about a topic as a list; nothing if there are none."""
    items = [
        f"{escape(one.question)}: {marked(one.answer)}, {VERDICTS[one.answer.verdict]}"
        for one in comparisons
        if one.about is topic
    ]
    return page.bullets(items) if items else ""


def answer(found: Difference) -> str:
    return f"{signed(found)}, {VERDICTS[found.verdict]}"


def marked(found: Difference | None) -> str:
    if found is None:
        return ""
    return f'<span class="{found.verdict}">{signed(found)}</span>'


def signed(found: OverSeeds) -> str:
    half = found.half_interval
    return number(found.mean, 4, sign=True) + ("" if half is None else f" ± {plain(half)}")


def flops(value: float) -> str:
    unit, power = svg.power(value)
    return f"{number(value / unit, 2)}·{power}"


def with_deviation(found: OverSeeds) -> str:
    deviation = found.deviation
    return number(found.mean, 3) + ("" if deviation is None else f" ± {number(deviation, 3)}")


def plain(value: float) -> str:
    return number(value, 4)


def seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
