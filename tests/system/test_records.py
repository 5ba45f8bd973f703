"""Dataclasses survive JSON, and what is not theirs is refused with its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

import pytest

from ossia.system.records import Inline, from_json, to_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True)
class Shape:
    name: str
    centre: Inline[Point]
    corners: tuple[Point, ...]
    size: tuple[int, str]
    counts: dict[int, float]
    colours: dict[Colour, bool]
    parent: str | None
    note: str | None = None
    sides: int = 4


SHAPE = Shape(
    name="square",
    centre=Point(0.5, 1),
    corners=(Point(0.0, 0.0), Point(1.0, 2.0)),
    size=(3, "cm"),
    counts={2: 0.25, 4: 1.0},
    colours={Colour.RED: True},
    parent=None,
)
WRITTEN = {
    "name": "square",
    "x": 0.5,
    "y": 1,
    "corners": [{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 2.0}],
    "size": [3, "cm"],
    "counts": {"2": 0.25, "4": 1.0},
    "colours": {"red": True},
    "parent": None,
    "sides": 4,
}


def test_a_dataclass_is_written_in_the_order_of_its_fields_and_read_back() -> None:
    assert json.dumps(to_json(SHAPE)) == json.dumps(WRITTEN)
    assert from_json(Shape, json.loads(json.dumps(WRITTEN))) == SHAPE


def test_a_field_with_a_default_may_be_missing() -> None:
    shorter = {key: value for key, value in WRITTEN.items() if key != "sides"}
    assert from_json(Shape, shorter) == SHAPE
    assert from_json(Shape, {**WRITTEN, "note": "n", "sides": 5}).note == "n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name must be str, not int"),
        ({"x": "left"}, "x must be float, not str"),
        ({"x": True}, "x must be float, not bool"),
        ({"sides": 4.0}, "sides must be int, not float"),
        ({"corners": [{"x": 0.0}]}, r"corners\[0\].y is missing"),
        ({"corners": [{"x": 0.0, "y": 0.0, "z": 0.0}]}, r"corners\[0\].z is not a known field"),
        ({"size": [3]}, "size must have 2 entries, not 1"),
        ({"counts": {"two": 0.25}}, "counts: .*'two'"),
        ({"counts": {"2": None}}, "counts.2 must be float, not NoneType"),
        ({"colours": {"green": True}}, "colours: 'green' is not a valid Colour"),
        ({"more": 1}, "more is not a known field"),
    ],
)
def test_other_data_are_refused_with_their_place(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Shape, WRITTEN | change)


def test_something_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="the top level must be dict, not list"):
        from_json(Shape, [])
