"""What options are made of: fields that state help, bounds and names once, and their checks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ossia.errors import OssiaError
from ossia.system.memory import parse_size


@dataclass(frozen=True)
class Option:
    """The metadata of a field: `steps: Annotated[int, Option("Batches to train on.")] = 2000`.

    A field that overrides an inherited one need not repeat it: `steps: int = 500`.
    """

    help: str
    metavar: str | None = None  # the value's name in help texts; None is N, X, TEXT or PATH by type
    names: tuple[str, ...] = ()  # more spellings, such as -m or --lr
    off: str | None = None  # the flag that says no, such as --full; None is --no-NAME
    default: str | None = None  # what None, 0 or an empty default stands for, such as "today"
    shorthands: Mapping[str, str] = field(default_factory=dict)  # other names of an enum's members
    minimum: float | None = None
    above: float | None = None  # a bound that the value must not reach, as `below`
    maximum: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """The problem with a number, as the end of a sentence; None if there is none."""
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
            if setting.several:
                _check_several(setting, value)
            elif setting.type in _KINDS and not (value is None and setting.optional):
                _check_kind(setting, value)
            if issubclass(setting.type, StrEnum) and not (value is None and setting.optional):
                if isinstance(value, str):
                    value = setting.option.shorthands.get(value, value)
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


# The checked types: the accepted types of a value, and their name in messages.
_KINDS = {int: (int, "a whole number"), float: (int | float, "a number"), bool: (bool, "a bool")}


def _check_kind(setting: Setting, value: object) -> None:
    kind, words = _KINDS[setting.type]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise OssiaError(f"{flag(setting.name)} must be {words}, not {value!r}")


def _check_several(setting: Setting, values: object) -> None:
    if not isinstance(values, tuple) or not all(isinstance(v, setting.type) for v in values):
        raise OssiaError(f"{flag(setting.name)} must be a tuple of texts, not {values!r}")


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass that carries an `Option`."""

    name: str
    type: type  # without None; str if it may be of several types; the elements' type of a tuple
    optional: bool  # whether it may be None
    several: bool  # whether it is a tuple, whose option may be repeated
    default: Any  # dataclasses.MISSING if there is none
    option: Option

    def read(self, text: str) -> Any:
        """The number or text that a user typed. Raises OssiaError if it is no number."""
        if self.type not in (int, float):
            return (text,) if self.several else text
        try:
            return self.type(text)
        except ValueError as error:
            raise OssiaError(
                f"{flag(self.name)} must be {_KINDS[self.type][1]}, not {text}"
            ) from error


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


def _plain(hint: Any) -> tuple[type, bool, bool]:
    """The type that a command-line string is parsed as, whether None is allowed, and whether the
    field is a tuple of them.
    """
    if get_origin(hint) is tuple:
        return get_args(hint)[0], False, True
    if isinstance(hint, type):
        return hint, False, False
    members = get_args(hint)
    others = [member for member in members if member is not NoneType]
    return (others[0] if len(others) == 1 else str), NoneType in members, False


def flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def check_size(name: str, value: object) -> None:
    """Raise OssiaError unless `value` is None, a positive number of bytes, or a size as text."""
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except OssiaError as error:
            raise OssiaError(f"{flag(name)}: {error}") from error
    if value is not None and (not isinstance(value, int) or value < 1):
        raise OssiaError(f"{flag(name)} must be at least one byte, not {value!r}")


def split(options: Mapping[str, Any], *kinds: type[Options]) -> tuple[Any, ...]:
    """Keyword arguments as one value of each kind. Raises OssiaError for a name that none has."""
    known = [setting.name for kind in kinds for setting in settings(kind)]
    if unknown := sorted(options.keys() - set(known)):
        raise OssiaError(f"unknown option {', '.join(unknown)}; the options are {', '.join(known)}")
    return tuple(
        kind(**{s.name: options[s.name] for s in settings(kind) if s.name in options})
        for kind in kinds
    )
