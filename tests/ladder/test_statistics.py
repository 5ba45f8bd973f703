"""Means and paired differences, against textbook formulas."""

from __future__ import annotations

import math

import pytest

from ossia.ladder.statistics import MOST_SEEDS, Verdict, difference, half_interval, over_seeds


def student(t: float, freedom: int) -> float:
    """The probability that |T| <= t, by Simpson's rule over Student's density."""
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    steps = 20_000
    heights = [
        (1 + (t * i / steps) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)
    ]
    inner = 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return 2 * scale * (heights[0] + inner + heights[-1]) * t / steps / 3


@pytest.mark.parametrize("count", range(2, MOST_SEEDS + 1))
def test_an_interval_holds_95_per_cent_of_students_distribution(count: int) -> None:
    values = [float(i) for i in range(count)]
    mean = sum(values) / count
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
    half = half_interval(values)
    assert half is not None
    assert student(half / error, count - 1) == pytest.approx(0.95, abs=1e-4)


def test_what_both_owe_to_the_seed_cancels() -> None:
    before, after = [3.0, 4.0, 5.0], [2.89, 3.9, 4.91]
    found = difference(after, before)
    assert found.mean == pytest.approx(-0.1)
    assert found.by_seed == pytest.approx([-0.11, -0.1, -0.09])
    assert found.half_interval == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-6)
    assert found.verdict is Verdict.BETTER
    assert difference(before, after).verdict is Verdict.WORSE
    assert difference([3.0, 4.2, 4.9], before).verdict is Verdict.UNCLEAR


def test_one_seed_says_nothing_about_noise() -> None:
    assert over_seeds([2.0]).deviation is None
    assert difference([1.0], [2.0]).half_interval is None
    assert difference([1.0], [2.0]).verdict is Verdict.UNCLEAR
