"""What a few seeds allow one to say: means, and differences between runs that share their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

# Student's t that bounds 95 % from both sides, for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(_T95) + 1


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean, by Student's t: the values are taken for
    draws from one normal distribution. None of a single value, which says nothing of its spread.
    """
    if len(values) < 2:
        return None
    return _T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The mean, the standard deviation over the seeds (None of one), the interval, and the values
    themselves.
    """
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "half_interval": half_interval(values),
        "by_seed": list(values),
    }


def difference(after: Sequence[float], before: Sequence[float]) -> dict[str, Any]:
    """As `spread`, of after - before seed by seed; what both owe to the seed cancels.

    `verdict`, of quantities that are better when lower: "better" or "worse" if the interval leaves
    zero out, else "unclear".
    """
    found = spread([a - b for a, b in zip(after, before, strict=True)])
    half = found["half_interval"]
    if half is None or abs(found["mean"]) <= half:
        verdict = "unclear"
    else:
        verdict = "better" if found["mean"] < 0 else "worse"
    return {**found, "verdict": verdict}
