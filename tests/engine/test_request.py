"""Sampling values are read as people write them: any type that is the number."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from ossia.engine import SamplingParams
from ossia.errors import OssiaError

HALVES = [0.5, Fraction(1, 2), Decimal("0.5"), np.float32(0.5), np.float64(0.5), torch.tensor(0.5)]
THREES = [3, 3.0, np.int64(3), np.uint8(3), np.float32(3), torch.tensor(3), torch.tensor([3.0])]


@pytest.mark.parametrize("value", HALVES, ids=repr)
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"]
)
def test_a_number_may_be_of_any_type(name: str, value: Any) -> None:
    found = getattr(SamplingParams(**{name: value}), name)
    assert (type(found), found) == (float, 0.5)


@pytest.mark.parametrize("value", THREES, ids=repr)
@pytest.mark.parametrize("name", ["top_k", "seed", "logprobs", "max_tokens"])
def test_a_whole_number_may_be_of_any_type(name: str, value: Any) -> None:
    found = getattr(SamplingParams(**{name: value}), name)
    assert (type(found), found) == (int, 3)


@pytest.mark.parametrize("value", THREES, ids=repr)
def test_whole_numbers_are_numbers(value: Any) -> None:
    params = SamplingParams(temperature=value, logit_bias={7: value})
    assert (params.temperature, params.logit_bias) == (3.0, {7: 3.0})
    assert type(params.logit_bias[7]) is float


@pytest.mark.parametrize("token", [7, "7", 7.0, np.int32(7), torch.tensor(7)], ids=repr)
def test_the_ids_of_biases_and_of_ends_may_be_of_any_type(token: Any) -> None:
    assert SamplingParams(logit_bias={token: -100}).logit_bias == {7: -100.0}
    if not isinstance(token, str):
        assert SamplingParams(stop_ids=frozenset({token})).stop_ids == {7}


def test_top_k_is_off_at_0_and_at_minus_1() -> None:
    assert SamplingParams(top_k=0).top_k == SamplingParams(top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "0.7"}, "temperature must be a finite number, not '0.7'"),
        ({"temperature": True}, "temperature must be a finite number, not True"),
        ({"temperature": None}, "temperature must be a finite number, not None"),
        ({"temperature": float("nan")}, "temperature must be a finite number, not nan"),
        ({"temperature": 10**400}, "temperature must be a finite number, not 1000"),
        ({"min_p": torch.ones(2)}, r"min_p must be a finite number, not tensor\(\[1., 1.\]\)"),
        ({"top_p": [0.5]}, r"top_p must be a finite number, not \[0.5\]"),
        ({"top_k": 2.5}, "top_k must be an integer, not 2.5"),
        ({"top_k": True}, "top_k must be an integer, not True"),
        ({"top_k": -2}, "top_k must be at least -1, not -2"),
        ({"seed": 1e300}, "seed must be between"),
        ({"max_tokens": float("inf")}, "max_tokens must be an integer, not inf"),
        ({"max_tokens": "5"}, "max_tokens must be an integer, not '5'"),
        ({"max_tokens": -1.0}, "max_tokens must be at least 0, not -1.0"),
        ({"logit_bias": [[7, 1.0]]}, r"logit_bias must map ids to numbers, not be \[\[7, 1.0\]\]"),
        ({"logit_bias": {"seven": 1}}, "an id of logit_bias must be an integer, not 'seven'"),
        ({"logit_bias": {7: None}}, "logit_bias of id 7 must be a finite number, not None"),
        ({"logit_bias": {7: -101}}, "logit_bias of id 7 must be between -100 and 100, not -101"),
        ({"logit_bias": {-1: 1}}, "an id of logit_bias must be at least 0, not -1"),
    ],
)
def test_what_is_no_such_number_is_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(OssiaError, match=message) as error:
        SamplingParams(**values)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
