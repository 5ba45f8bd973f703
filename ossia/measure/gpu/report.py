"""A run as one JSON object and one table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ossia.measure.gpu import limits
from ossia.measure.gpu.cases import Case, Side, Suite
from ossia.measure.gpu.parts import Told, parts
from ossia.measure.gpu.suite import Found


@dataclass(frozen=True)
class Row:
    """A case, what both sides made of it, and the best that the card's limits allow."""

    case: Case
    ours: Told | None
    peer: Told | None
    limit: float | None

    @property
    def share(self) -> float | None:
        """Of the limit, 1 at best; None without either."""
        return self._quotient(self.ours.value if self.ours else None, self.limit)

    @property
    def ratio(self) -> float | None:
        """How many times as good as transformers; None without either."""
        ours, peer = self.ours and self.ours.value, self.peer and self.peer.value
        return self._quotient(ours, peer)

    def _quotient(self, one: float | None, other: float | None) -> float | None:
        if not one or not other or one < 0 or other < 0:
            return None
        return one / other if self.case.more_is_better else other / one

    @property
    def missing(self) -> Iterator[Told]:
        """Sides that were to be measured and have no figure."""
        return (told for told in (self.ours, self.peer) if told is not None and told.value is None)


def rows(found: Found, suite: Suite) -> list[Row]:
    """All rows of a suite, model by model."""
    card, copy = limits.hardware(found.limits), found.limits["copy_bytes_per_second"]
    order = [model.name for model in (*suite.served, *suite.trained)]
    cases = dict.fromkeys(case for part in parts(suite) for case in part.cases(suite))
    return [
        Row(
            case,
            found.told.get((case, Side.OSSIA)),
            found.told.get((case, Side.PEER)),
            case.limit(suite.config(case.model), card, copy),
        )
        for case in sorted(cases, key=lambda case: order.index(case.model))
    ]


def record(found: Found, suite: Suite) -> dict[str, Any]:
    """The run as JSON."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(found.seconds, 1),
        "limits": found.limits,
        "rows": [
            {
                "model": row.case.model,
                "measure": row.case.measure,
                "batch": row.case.batch,
                "length": row.case.length,
                "unit": row.case.unit,
                **_side("ossia", row.ours),
                "limit": row.limit,
                "share": row.share,
                **_side("transformers", row.peer),
                "ratio": row.ratio,
            }
            for row in rows(found, suite)
        ],
    }


def _side(name: str, told: Told | None) -> dict[str, Any]:
    if told is None:
        return {name: None}
    return {name: told.value, **({f"{name}_why": told.why} if told.why else {})}


HEAD = ("tokens/s, batch x context", "ossia", "limit", "share", "transformers", "times")


def cells(found: Found, suite: Suite) -> list[tuple[str, ...]]:
    """The table: for each model a row with its name, and below it one for each case."""
    lines, model = [], ""
    for row in rows(found, suite):
        if row.case.model != model:
            model = row.case.model
            lines.append((model,))
        lines.append(
            (
                f"  {row.case}",
                _figure(row.ours) if row.ours else "",
                "" if row.limit is None else _digits(row.limit),
                "" if row.share is None else f"{row.share:.2f}",
                _figure(row.peer) if row.peer else "",
                "" if row.ratio is None else f"{row.ratio:.1f}",
            )
        )
    return lines


def remarks(found: Found, suite: Suite) -> list[str]:
    """Why figures are missing: a line for each reason, with what it concerns."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in rows(found, suite):
        for told in row.missing:
            key = row.case.model, told.side, told.why
            reasons.setdefault(key, []).append(str(row.case))
    return [
        f"{model}, {side}: {'; '.join(cases)}: {why}"
        for (model, side, why), cases in reasons.items()
    ]


def _figure(told: Told) -> str:
    return "-" if told.value is None else _digits(told.value)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
