"""Statistics of a few seeds: means, and paired differences between runs that share their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(_T95) + 1


@dataclass(frozen=True)
class OverSeeds:
    """A figure over several seeds.

    deviation: the standard deviation over the seeds. half_interval: half of the 95 % confidence
    interval of the mean. A single seed has neither.
    """

    mean: float
    deviation: float | None
    half_interval: float | None
    by_seed: tuple[float, ...]


class Verdict(StrEnum):
    """A difference of a quantity that is better when lower."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"  # its interval includes zero


@dataclass(frozen=True)
class Difference(OverSeeds):
    """A paired difference: whatever both sides owe to the seed cancels."""

    verdict: Verdict


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % confidence interval of the mean by Student's t, which takes the values as
    draws from one normal distribution. None for a single value.
    """
    if len(values) < 2:
        return None
    return _T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def over_seeds(values: Sequence[float]) -> OverSeeds:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return OverSeeds(statistics.mean(values), deviation, half_interval(values), tuple(values))


def difference(after: Sequence[float], before: Sequence[float]) -> Difference:
    """after - before, seed by seed."""
    found = over_seeds([a - b for a, b in zip(after, before, strict=True)])
    half = found.half_interval
    if half is None or abs(found.mean) <= half:
        verdict = Verdict.UNCLEAR
    else:
        verdict = Verdict.BETTER if found.mean < 0 else Verdict.WORSE
    return Difference(**vars(found), verdict=verdict)
