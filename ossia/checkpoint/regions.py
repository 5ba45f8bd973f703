"""The geometry of a layout's rows: the shapes of tensors on disk, and the check that every element
is mapped exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ossia.families.mapping import Index, Row

Shape = tuple[int, ...]


def grouped(rows: Iterable[Row], key: str) -> dict[str, list[Row]]:
    """Rows by `ours` or by `theirs`, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return groups


def region_shape(shape: Shape, index: Index) -> Shape:
    """The shape of `tensor[index]` for a tensor of this shape."""
    sliced = [
        len(range(size)[entry])
        for size, entry in zip(shape, index, strict=False)
        if isinstance(entry, slice)
    ]
    return (*sliced, *shape[len(index) :])


def stored_shapes(rows: Iterable[Row], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape on disk of each tensor that rows name, given the shapes of our parameters."""
    found: dict[str, Shape] = {}
    for row in rows:
        shape = _extents(row, region_shape(shapes[row.ours], row.our_index))
        if row.theirs in found:
            assert len(found[row.theirs]) == len(shape), f"rows disagree about {row.theirs}"
            shape = tuple(map(max, found[row.theirs], shape))
        found[row.theirs] = shape
    return found


def check_complete(
    rows: Iterable[Row], ours: Mapping[str, Shape], theirs: Mapping[str, Shape]
) -> None:
    """Assert that rows map each element of ours and of theirs exactly once; a failure is a bug in
    the family's table.
    """
    rows = tuple(rows)
    by_ours = grouped(rows, "ours")
    assert by_ours.keys() == ours.keys(), (
        f"rows and parameters differ in {by_ours.keys() ^ ours.keys()}"
    )
    for name, group in by_ours.items():
        _assert_once(name, ours[name], [row.our_index for row in group])
    for name, group in grouped(rows, "theirs").items():
        shape = _transposed(theirs[name]) if group[0].transpose else theirs[name]
        _assert_once(name, shape, [row.their_index for row in group])


def _extents(row: Row, region: Shape) -> Shape:
    """The smallest shape on disk that contains a row's region of this shape."""
    remaining = list(region)
    extents = []
    for entry in row.their_index:
        if isinstance(entry, int):
            extents.append(entry + 1)
        else:
            start, step = entry.start or 0, entry.step or 1
            size = remaining.pop(0)
            # An open slice reaches the end: with a step, the last whole step.
            stop = start - start % step + size * step if entry.stop is None else entry.stop
            assert len(range(start, stop, step)) == size, f"{row} joins regions of unlike size"
            extents.append(stop)
    shape = (*extents, *remaining)
    return _transposed(shape) if row.transpose else shape


def _transposed(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


def _assert_once(name: str, shape: Shape, indexes: list[Index]) -> None:
    if indexes == [()]:
        return
    depth = max(map(len, indexes))
    counts = torch.zeros(shape[:depth], dtype=torch.int32)
    for index in indexes:
        counts[index] += 1
    assert bool((counts == 1).all()), f"rows do not map every element of {name} exactly once"
