"""Where each tensor on disk goes: a layout's rows, folded over layers and experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from ossia.families.mapping import Index, Row


@dataclass(frozen=True)
class Move:
    """A tensor on disk and its parameter; or several that differ only in numbers of layers and
    experts, which are then ranges in their names.
    """

    theirs: str
    ours: str
    kind: str  # shape, and dtype where a file has one


# A number that is a whole part of a dotted name or of an index: a layer or an expert.
_NUMBER = re.compile(r"(?<![^.\[ ])\d+(?![^.,\]])")


def fold(rows: Iterable[Row], kinds: Mapping[str, str]) -> Iterator[Move]:
    """Rows that differ only in numbers as one move each, in order of first appearance.

    kinds: shape and dtype of each tensor on disk, by name; rows of different kinds stay apart.
    """
    groups: dict[tuple[str, str, str], list[tuple[int, ...]]] = {}
    for row in rows:
        theirs = row.theirs + _index(row.their_index)
        ours = row.ours + _index(row.our_index)
        kind = kinds[row.theirs] + (" transposed" if row.transpose else "")
        numbers = (*_NUMBER.findall(theirs), *_NUMBER.findall(ours))
        key = _NUMBER.sub("{}", theirs), _NUMBER.sub("{}", ours), kind
        groups.setdefault(key, []).append(tuple(map(int, numbers)))
    for (theirs, ours, kind), members in groups.items():
        columns = [ranges(sorted(set(column))) for column in zip(*members, strict=True)]
        split = theirs.count("{}")
        yield Move(theirs.format(*columns[:split]), ours.format(*columns[split:]), kind)


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers, with evenly spaced runs as "0-23" or "0,2,...,22": "0-3,8,10,...,20,47"."""
    parts = []
    while numbers:
        steps = [later - earlier for earlier, later in pairwise(numbers)] or [1]
        step = steps[0]
        run = 1 + sum(1 for _ in takewhile(step.__eq__, steps[: len(numbers) - 1]))
        if run >= 3 and step == 1:
            parts.append(f"{numbers[0]}-{numbers[run - 1]}")
        elif run >= 4:
            parts.append(f"{numbers[0]},{numbers[1]},...,{numbers[run - 1]}")
        else:  # the number after a pair may begin a run
            run = 1
            parts.append(str(numbers[0]))
        numbers = numbers[run:]
    return ",".join(parts)


def shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _index(index: Index) -> str:
    """An index as Python writes it."""
    parts = [str(entry) if isinstance(entry, int) else _slice(entry) for entry in index]
    return f"[{', '.join(parts)}]" if parts else ""


def _slice(entry: slice) -> str:
    start, stop, step = ("" if n is None else str(n) for n in (entry.start, entry.stop, entry.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")
