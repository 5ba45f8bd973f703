"""Dataclasses of options: what a field inherits, and the values that it refuses."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import pytest

from ossia.errors import OssiaError
from ossia.options import Option, Options, settings


class Color(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass(frozen=True)
class Base(Options):
    steps: Annotated[int, Option("Batches.", minimum=1)] = 10
    rate: Annotated[float | None, Option("The rate.", above=0, maximum=2.5)] = None
    color: Annotated[Color, Option("A color.")] = Color.RED
    memory: Annotated[int | str | None, Option("Memory.", metavar="SIZE")] = None
    internal: int = 3


@dataclass(frozen=True)
class Derived(Base):
    share: Annotated[float, Option("A share.", minimum=0, below=1)] = 0.5
    steps: int = 20
    color: Annotated[Color, Option("Another color.")] = Color.DARK_BLUE


def test_a_field_keeps_its_place_and_its_option_when_only_its_default_is_overridden():
    found = {setting.name: setting for setting in settings(Derived)}
    assert list(found) == ["share", "steps", "rate", "color", "memory"]
    assert found["steps"].option is next(s.option for s in settings(Base) if s.name == "steps")
    assert found["steps"].default == 20
    assert found["color"].option.help == "Another color."


def test_a_setting_knows_how_to_read_its_value():
    assert [(s.type, s.optional) for s in settings(Base)] == [
        (int, False),
        (float, True),
        (Color, False),
        (str, True),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, not 0"),
        ({"rate": 0.0}, "--rate must be above 0 and at most 2.5, not 0.0"),
        ({"rate": 2.6}, "--rate must be above 0 and at most 2.5, not 2.6"),
        ({"rate": float("nan")}, "--rate must be above 0 and at most 2.5, not nan"),
        ({"share": 1.0}, "--share must be at least 0 and below 1, not 1.0"),
        ({"share": -0.1}, "--share must be at least 0 and below 1, not -0.1"),
        ({"color": "green"}, "--color must be red or dark-blue, not green"),
    ],
)
def test_a_value_that_cannot_be_is_refused(values: dict, message: str):
    with pytest.raises(OssiaError) as error:
        Derived(**values)
    assert str(error.value) == message


def test_bounds_are_inclusive_or_exclusive_as_stated_and_none_is_not_compared():
    assert Derived(steps=1, rate=2.5, share=0.0).rate == 2.5
    assert Derived(rate=None).rate is None


def test_a_string_stands_for_the_member_of_an_enum():
    assert Derived(color="red").color is Color.RED  # type: ignore[arg-type]
    assert replace(Derived(), color="red").color is Color.RED


def test_a_run_refuses_an_option_that_it_did_not_begin_with():
    began = Derived(steps=7)
    began.refuse_changes({"steps": 7, "color": Color.DARK_BLUE})
    message = "--steps 8: the run began with 7 and keeps it; leave --steps out"
    with pytest.raises(OssiaError, match=message):
        began.refuse_changes({"steps": 8})
