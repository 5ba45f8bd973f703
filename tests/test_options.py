"""Dataclasses of options: what a field inherits, and the values that it refuses."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import pytest
import torch

from ossia.errors import OssiaError
from ossia.options import (
    Dtype,
    EngineOptions,
    LoadOptions,
    Option,
    Options,
    settings,
    split,
)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "int8"}, "--dtype must be float32 or bfloat16 or float16, not int8"),
        ({"dtype": torch.float64}, "--dtype must be float32 or bfloat16 or float16, not float64"),
        ({"load": "move"}, "--load must be map or copy, not move"),
        ({"dense": "int4"}, "--dense must be int8, not int4"),
        ({"threads": 0}, "--threads must be at least 1 and at most 1024, not 0"),
        ({"threads": 1.5}, "--threads must be a whole number, not 1.5"),
        ({"expert_memory": 0}, "--expert-memory must be at least one byte, not 0"),
        ({"expert_memory": "some"}, "--expert-memory: 'some' is no size; write 12GiB, 500MB or a "),
        ({"kv": "int3"}, "--kv must be int8 or fp8, not int3"),
        ({"kv_memory": "0MB"}, "--kv-memory must be at least one byte, not 0"),
        ({"kv_memory": 2.5}, "--kv-memory must be at least one byte, not 2.5"),
        ({"max_batch": 0}, "--max-batch must be at least 1 and at most 65536, not 0"),
        ({"max_batch": True}, "--max-batch must be a whole number, not True"),
        ({"prefill_chunk": "512"}, "--prefill-chunk must be a whole number, not '512'"),
        ({"prefix_cache": "no"}, "--prefix-cache must be a bool, not 'no'"),
        ({"max_queue": None}, "--max-queue must be a whole number, not None"),
        ({"kv_cache": 1, "device": "cpu"}, "unknown option kv_cache; the options are dtype, dev"),
    ],
)
def test_options_of_loading_and_of_the_engine_are_checked_where_they_are_made(values, message):
    with pytest.raises(OssiaError) as error:
        split(values, LoadOptions, EngineOptions)
    assert str(error.value).startswith(message)


def test_keywords_are_split_by_who_takes_them_and_torch_names_its_dtypes_and_devices():
    given = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "kv_memory": "1GiB"}
    load, engine = split({**given, "expert_memory": "all"}, LoadOptions, EngineOptions)
    expected = LoadOptions(dtype=Dtype.bfloat16, device="cpu", expert_memory="all")
    assert (load, engine) == (expected, EngineOptions(kv_memory="1GiB"))
