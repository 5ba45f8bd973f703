"""What a user may set: frozen dataclasses whose fields state their help, bounds and names once.

`ossia.cli.fields` derives the options of the commands from them; a library's caller makes the same
dataclass, and both get the same checks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from ossia.errors import OssiaError


@dataclass(frozen=True)
class Option:
    """The metadata of a field: `steps: Annotated[int, Option("Batches to train on.")] = 2000`.

    A field that overrides an inherited one need not repeat it: `steps: int = 500`.
    """

    help: str
    metavar: str | None = None  # the value's name in help texts; None is N, X, TEXT or PATH by type
    names: tuple[str, ...] = ()  # more spellings, such as -m or --lr
    off: str | None = None  # the flag that says no, such as --full; None is --no-NAME
    default: str | None = None  # what help says in place of the default's value, such as "today"
    minimum: float | None = None
    above: float | None = None  # a bound that the value must not reach, as `below`
    maximum: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with a number, as the end of a sentence; None if nothing is."""
        bounds = {
            "at least": (self.minimum, lambda bound: value >= bound),
            "above": (self.above, lambda bound: value > bound),
            "at most": (self.maximum, lambda bound: value <= bound),
            "below": (self.below, lambda bound: value < bound),
        }
        given = {word: pair for word, pair in bounds.items() if pair[0] is not None}
        if math.isfinite(value) and all(holds(bound) for bound, holds in given.values()):
            return None
        wanted = " and ".join(f"{word} {bound:.10g}" for word, (bound, _) in given.items())
        return f"must be {wanted or 'finite'}, not {value}"


@dataclass(frozen=True)
class Options:
    """The base of all dataclasses of options. Numbers are within their bounds, and a field whose
    type is an enum holds a member of it, though its value as a string is accepted too.
    """

    def __post_init__(self) -> None:
        """Raise OssiaError for a value that an option does not take."""
        for setting in settings(type(self)):
            value = getattr(self, setting.name)
            if issubclass(setting.type, StrEnum) and value is not None:
                if value not in list(setting.type):
                    choices = " or ".join(setting.type)
                    raise OssiaError(f"{flag(setting.name)} must be {choices}, not {value}")
                object.__setattr__(self, setting.name, setting.type(value))
            elif isinstance(value, int | float) and (problem := setting.option.problem(value)):
                raise OssiaError(f"{flag(setting.name)} {problem}")

    def refuse_changes(self, asked: Mapping[str, Any]) -> None:
        """Raise OssiaError if one of the values in `asked` differs from this object's, which were
        fixed when a run began.
        """
        for name, value in asked.items():
            began = getattr(self, name)
            if value != began:
                raise OssiaError(
                    f"{flag(name)} {value}: the run began with {began} and keeps it; "
                    f"leave {flag(name)} out, or start a new run"
                )


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass that carries an `Option`."""

    name: str
    type: type  # without None; str if it may be of several types
    optional: bool  # whether it may be None
    default: Any
    option: Option


@cache
def settings(kind: type[Options]) -> tuple[Setting, ...]:
    """The fields of a dataclass that carry an `Option`, in the order in which help lists them:
    those that the class introduces, then those that its base introduces.
    """
    introduced: dict[str, type] = {}
    described: dict[str, Option] = {}
    for base in reversed(kind.__mro__):
        hints = get_type_hints(base, include_extras=True)
        for name in inspect.get_annotations(base):
            introduced.setdefault(name, base)
            for data in getattr(hints[name], "__metadata__", ()):
                if isinstance(data, Option):
                    described[name] = data
    types, defaults = get_type_hints(kind), {field.name: field.default for field in fields(kind)}
    return tuple(
        Setting(name, *_plain(types[name]), defaults[name], described[name])
        for base in kind.__mro__
        for name in inspect.get_annotations(base)
        if introduced[name] is base and name in described
    )


def _plain(hint: Any) -> tuple[type, bool]:
    """The type that a string on the command line is read as, and whether None may stand for it."""
    if isinstance(hint, type):
        return hint, False
    members = get_args(hint)
    others = [member for member in members if member is not NoneType]
    return (others[0] if len(others) == 1 else str), NoneType in members


def flag(name: str) -> str:
    """How the command line spells a field."""
    return "--" + name.replace("_", "-")
