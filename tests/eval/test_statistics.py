"""Statistics against their definitions, by enumeration and by the equations that they solve."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from ossia.eval import statistics

Z = 1.959963984540054


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (7.5, 30), (499, 1000)])
def test_wilsons_interval_ends_where_the_share_is_z_errors_away(right: float, count: int) -> None:
    interval, share = statistics.wilson(right, count), right / count
    for end in (interval.low, interval.high):
        if end not in (0.0, 1.0):
            assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count))
    assert interval.low <= share <= interval.high
    assert (interval.low == 0.0) == (right == 0)
    assert (interval.high == 1.0) == (right == count)


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = statistics.wilson(right, count)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (3, 3), (1, 7), (10, 2)])
def test_mcnemars_p_counts_the_outcomes_that_are_as_uneven(one: int, other: int) -> None:
    count = one + other
    outcomes = [sum(sides) for sides in itertools.product((0, 1), repeat=count)]
    as_uneven = [n for n in outcomes if abs(2 * n - count) >= abs(one - other)]
    assert statistics.mcnemar(one, other) == pytest.approx(len(as_uneven) / len(outcomes))


def test_mcnemars_p_of_many_questions_is_that_of_the_normal_distribution() -> None:
    exact = min(1.0, 2 * sum(math.comb(1000, i) for i in range(471)) / 2**1000)
    assert statistics.mcnemar(470, 530) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(("k", "count", "right"), [(1, 4, 1), (2, 5, 2), (3, 6, 1), (4, 4, 0)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_reply(k: int, count: int, right: int) -> None:
    draws = list(itertools.combinations([True] * right + [False] * (count - right), k))
    assert statistics.pass_at(k, count, right) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_bootstrap_interval_is_that_of_all_resamples() -> None:
    differences = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0]
    totals = Counter(map(sum, itertools.product(differences, repeat=len(differences))))
    every = sorted(totals.elements())
    low, high = (every[round(q * (len(every) - 1))] / 6 for q in (0.025, 0.975))
    found = statistics.bootstrap(differences)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_most_common_answer_decides_and_a_tie_counts_in_part() -> None:
    assert statistics.majority([("4", False), ("5", True), ("5", True)]) == 1.0
    assert statistics.majority([("4", False), ("4", False), ("5", True)]) == 0.0
    assert statistics.majority([("4", False), ("5", True)]) == 0.5
    assert statistics.majority([(None, False), (None, False), ("5", True)]) == 1.0
    assert statistics.majority([(None, False)]) == 0.0
