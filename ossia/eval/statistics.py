"""What a test can tell: intervals, paired comparisons, and several replies to a question."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)
_RESAMPLES = 4000
LEVEL = 0.05  # below which a difference is more than noise


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(right: float, count: int) -> Interval:
    """Wilson's score interval (1927) of a share of `count` independent questions.

    right: their sum of points, each from 0 to 1. Where a point is the mean over several replies the
    interval is a little too wide, as such points vary less than single replies.
    """
    if not count:
        return Interval(0.0, 1.0)
    share, z2 = right / count, _Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # At 0 and 1 the interval ends there, but for rounding.
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if right == count else min(1.0, centre + half))


def mcnemar(only_one: int, only_other: int) -> float:
    """The exact p-value, two-sided, of McNemar's test (1947): how likely it is that questions which
    one of two equally good models answers, and the other does not, fall so unevenly.
    """
    count, least = only_one + only_other, min(only_one, only_other)
    tail = sum(math.comb(count, i) for i in range(least + 1))
    return min(1.0, float(2 * tail / 2**count)) if count < 1000 else _normal(only_one, only_other)


def _normal(only_one: int, only_other: int) -> float:
    """McNemar's test by the normal distribution, with continuity correction."""
    z = max(0.0, abs(only_one - only_other) - 1) / math.sqrt(only_one + only_other)
    return 2 * (1 - NormalDist().cdf(z))


def bootstrap(differences: Sequence[float], seed: int = 0) -> Interval:
    """The percentile interval (Efron 1979) of the mean of paired differences, by drawing the
    questions anew.
    """
    draw, count = random.Random(seed), len(differences)
    means = sorted(sum(draw.choices(differences, k=count)) / count for _ in range(_RESAMPLES))
    return Interval(means[round(0.025 * _RESAMPLES)], means[round(0.975 * _RESAMPLES) - 1])


def pass_at(k: int, count: int, right: int) -> float:
    """The chance that at least one of k replies is right, of which `right` in `count` were: the
    unbiased estimator of Chen et al. 2021 (arXiv:2107.03374).
    """
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def majority(replies: Sequence[tuple[str | None, bool]]) -> float:
    """Whether the most common answer is right: 1 or 0, or between them where several are equally
    common. A reply without an answer does not vote.
    """
    votes = Counter(answer for answer, _ in replies if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    right = {answer for answer, is_right in replies if is_right and answer in winners}
    return len(right) / len(winners)
