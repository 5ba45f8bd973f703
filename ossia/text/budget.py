"""What a chat template may make and how long it may run; see `ossia.text.sandbox`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

SECONDS = 5.0  # of one thread's processor time, for one text
UNITS = 32 << 20  # for one text, whatever the chat

_ELEMENT = 64  # the units of an element of a list: about the bytes that it takes
_BITS = 1 << 16  # of a whole number


class Exhausted(Exception):
    """A template that makes too much, or runs for too long."""


class Budget:
    """`units` characters, each element of a container counting as `_ELEMENT`, and `SECONDS`."""

    def __init__(self, units: int) -> None:
        self._left = units
        self._until = time.monotonic() + SECONDS
        self._until_used = time.thread_time() + SECONDS

    def tick(self) -> None:
        """Raise Exhausted if the time is up. A system that is busy elsewhere costs none."""
        # In this order because the second clock is slower to read.
        if time.monotonic() > self._until and time.thread_time() > self._until_used:
            raise Exhausted(f"it runs for more than {SECONDS:.0f} seconds")

    def charge(self, units: int) -> None:
        """Raise Exhausted if so much is not left, or the time is up."""
        self.tick()
        self._left -= units
        if self._left < 0:
            raise Exhausted("it makes more text than any chat can need")

    def made(self, value: object) -> Any:
        """Charge for a value, which is returned."""
        self.charge(size(value, self._left))
        return value


_current: ContextVar[Budget] = ContextVar("budget")
current = _current.get
"""The budget of the template that this thread compiles or renders."""


@contextmanager
def spending(units: int) -> Iterator[None]:
    """A new budget within the block."""
    token = _current.set(Budget(units))
    try:
        yield
    finally:
        _current.reset(token)


def size(value: object, most: float = float("inf")) -> int:
    """Units of a value with all that it holds, each as often as it would be printed: nested lists
    that share their elements can be exponentially larger than their memory. Stops beyond `most`.
    Raises Exhausted for a whole number that no arithmetic should be done with.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return _bits(value.bit_length())
    if isinstance(value, dict):
        parts: Iterable[object] = chain(value, value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        return 1
    total = _ELEMENT
    for part in parts:
        total += _ELEMENT + size(part, most - total)
        if total > most:
            break
    return total


def _bits(count: int) -> int:
    if count > _BITS:
        raise Exhausted(f"it computes with numbers of more than {_BITS} bits")
    return 1


# ---- What operations cost beyond their result, or before it is there.


def product(left: object, right: object) -> int:
    """Units of left * right."""
    if isinstance(left, int) and isinstance(right, int):
        return _bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int):
            return size(value) * max(times, 0)
    return 1


def power(base: object, exponent: object) -> int:
    """Units of base ** exponent."""
    if isinstance(base, int) and isinstance(exponent, int):
        return _bits(base.bit_length() * exponent)
    return 1


def remainder(left: object, right: object) -> int:
    """Units of left % right, which may be a format and its values."""
    if not isinstance(left, str | bytes):
        return 1
    text = left if isinstance(left, str) else left.decode("latin-1")
    return _filled(text, text.count("%"), (right,), varies="*" in text)


def formatted(text: object, *values: object, **named: object) -> int:
    """Units of text.format(*values, **named)."""
    text = str(text)
    nested = re.search(r"\{[^{}]*\{", text) is not None
    return _filled(text, text.count("{"), (*values, *named.values()), varies=nested)


def _filled(text: str, fields: int, values: tuple[object, ...], *, varies: bool) -> int:
    """Units of a text whose every field may be as wide as its largest number, or a value if the
    width `varies`, and hold all values.
    """
    widest = max((int(digits[:9]) for digits in re.findall("[0-9]+", text)), default=0)
    if varies:
        numbers = chain.from_iterable(_flat(value) for value in values)
        widest = max([widest, *(number for number in numbers if isinstance(number, int))])
    return len(text) + fields * (widest + size(values))


def _flat(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, tuple | list) else (value,)


def _count(value: object) -> int:
    """A width or a number of times, 0 for what is none: the operation itself will refuse it."""
    return max(value, 0) if isinstance(value, int) else 0


def _length(value: object) -> int:
    """Of an indentation or a separator, given as such or by its width."""
    return _count(value) if isinstance(value, int) else len(str(value))


def _items(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 1


def _replaced(text: object, old: object, new: object, *_: object, **__: object) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + text.count(old) * len(new)


def _quadratic(text: object, *_: object, **__: object) -> int:
    """Of a filter that searches its text anew from each place."""
    length = len(str(text))
    return length * (1 + length // 64)


def _parts(text: object, separator: object = None, *_: object, **__: object) -> int:
    """Of a text that is split."""
    text = str(text)
    if separator is None:
        return _ELEMENT * (1 + sum(map(text.count, " \n\t\r\v\f")))
    return _ELEMENT * (1 + text.count(str(separator)))


def _json(value: object, *_: object, indent: object = None, **options: object) -> int:
    nodes = size(value)
    separators = size(options.get("separators"))
    if indent is None:
        return nodes * (1 + separators)
    return nodes * (separators + _depth(value) * _length(indent))


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list | tuple) else 1


def _sum(values: object, attribute: object = None, start: object = 0) -> int:
    """Of lists it is quadratic."""
    return 1 if isinstance(start, int | float) else _items(values) * size(values)


def _elements(values: object, *_: object, **__: object) -> int:
    return _ELEMENT * len(values) if isinstance(values, str) else 1


def _times(factor: int) -> Callable[..., int]:
    return lambda value, *_, **__: factor * size(value)


FILTERS: dict[str, Callable[..., int]] = {
    "batch": lambda values, linecount, fill_with=None: _elements(values) + _count(linecount),
    "center": lambda text, width=80: _count(width),
    "e": _times(6),
    "escape": _times(6),
    "forceescape": _times(6),
    "format": lambda text, *values, **named: remainder(str(text), values or named),
    "indent": lambda s, width=4, first=False, blank=False: (
        (1 + str(s).count("\n")) * _length(width)
    ),
    "join": lambda values, d="", attribute=None: _items(values) * _length(d),
    "list": _elements,
    "pprint": _times(64),
    "replace": _replaced,
    "round": lambda value, precision=0, method="common": power(10, precision),
    "slice": lambda values, slices, fill_with=None: _elements(values) + _ELEMENT * _count(slices),
    "sort": _elements,
    "striptags": _quadratic,
    "sum": _sum,
    "tojson": _json,
    "unique": _elements,
    "urlencode": _times(12),
    "urlize": _quadratic,
    "wordcount": _times(8),
    "wordwrap": _quadratic,
}
"""By name, for the filter's own arguments. Others cost what they make."""

METHODS: dict[str, Callable[..., int]] = {
    "center": lambda text, width, *_: _count(width),
    "expandtabs": lambda text, tabsize=8: text.count("\t") * _count(tabsize),
    "format": formatted,
    "format_map": lambda text, values: formatted(text, values, *dict(values).values()),
    "join": lambda text, values: _items(values) * len(text) + size(values),
    "ljust": lambda text, width, *_: _count(width),
    "replace": _replaced,
    "rjust": lambda text, width, *_: _count(width),
    "rsplit": _parts,
    "split": _parts,
    "splitlines": lambda text, *_, **__: _ELEMENT * (1 + text.count("\n")),
    "to_bytes": lambda number, length=1, *_, **__: _count(length),
    "translate": lambda text, table: len(text) * max(map(size, table.values()), default=1),
    "zfill": lambda text, width: _count(width),
}
"""By name, for a method of a string, bytes or a number, and the method's arguments."""

MATERIALIZED = frozenset({"join", "sum"})
"""Filters and methods whose cost depends on how many values an iterator yields."""
