"""Frozen dataclasses to JSON and back, with types checked and errors that name the place.

A field whose default is None is omitted from the JSON while it is None. A field of type `Inline[D]`
is a dataclass D whose fields are stored among those of its owner.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ossia.errors import OssiaError
from ossia.system.files import read_json

Record = TypeVar("Record")

_INLINE = object()
Inline = Annotated[Record, _INLINE]


def to_json(value: Any) -> Any:
    """A value for `json.dumps`: dataclasses and mappings as objects, tuples as arrays."""
    if is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        found: dict[str, Any] = {}
        for item in fields(value):
            own = getattr(value, item.name)
            if _is_inline(hints[item.name]):
                found |= to_json(own)
            elif own is not None or item.default is not None:
                found[item.name] = to_json(own)
        return found
    if isinstance(value, dict):
        return {str(key): to_json(own) for key, own in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(own) for own in value]
    return value.value if isinstance(value, Enum) else value


def from_json(kind: type[Record], data: Any, place: str = "") -> Record:
    """The dataclass that `to_json` turned into `data`.

    Raises ValueError, naming the place in `data`, for a value of another type and for a field that
    is missing or unknown.
    """
    rest = dict(_checked(data, dict, place))
    record = _record(kind, rest, place)
    if rest:
        raise ValueError(f"{_join(place, next(iter(rest)))} is not a known field")
    return record


def read(kind: type[Record], file: Path) -> Record:
    """A JSON file as a dataclass. Raises OssiaError, naming file and place."""
    try:
        return from_json(kind, read_json(file))
    except OssiaError:
        raise
    except ValueError as error:
        raise OssiaError(f"{file}: {error}") from error


def _record(kind: Any, rest: dict[str, Any], place: str) -> Any:
    """A dataclass from its fields, which are removed from `rest`."""
    hints, values = get_type_hints(kind, include_extras=True), {}
    for item in fields(kind):
        hint = hints[item.name]
        if _is_inline(hint):
            values[item.name] = _record(get_args(hint)[0], rest, place)
        elif item.name in rest:
            values[item.name] = _value(hint, rest.pop(item.name), _join(place, item.name))
        elif not _has_default(item):
            raise ValueError(f"{_join(place, item.name)} is missing")
    return kind(**values)


def _value(hint: Any, data: Any, place: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(parts[0], data, place)
    if origin in (Union, UnionType):
        (some,) = (part for part in parts if part is not NoneType)
        return None if data is None else _value(some, data, place)
    if origin is tuple:
        return tuple(_entries(parts, _checked(data, list, place), place))
    if origin is dict:
        return {
            _converted(parts[0], key, place): _value(parts[1], item, _join(place, key))
            for key, item in _checked(data, dict, place).items()
        }
    if is_dataclass(hint):
        kind: Any = hint
        return from_json(kind, data, place)
    if issubclass(hint, Enum):
        return _converted(hint, data, place)
    return _checked(data, hint, place)


def _entries(kinds: tuple[Any, ...], items: list[Any], place: str) -> list[Any]:
    """The entries of a tuple[X, Y] or a tuple[X, ...]."""
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise ValueError(f"{place} must have {len(kinds)} entries, not {len(items)}")
    pairs = zip(kinds, items, strict=True)
    return [_value(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(pairs)]


def _converted(kind: type, data: Any, place: str) -> Any:
    """A value that JSON writes as text: the key of an object, or an enum."""
    try:
        return kind(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _checked(data: Any, kind: type, place: str) -> Any:
    allowed = (int, float) if kind is float else kind
    if not isinstance(data, allowed) or (isinstance(data, bool) and kind is not bool):
        name, found = kind.__name__, type(data).__name__
        raise ValueError(f"{place or 'the top level'} must be {name}, not {found}")
    return data


def _is_inline(hint: Any) -> bool:
    return get_origin(hint) is Annotated and _INLINE in hint.__metadata__


def _has_default(item: Field[Any]) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
