"""Rows: this region of a tensor of theirs is that region of one of ours, to load and to save."""

from __future__ import annotations

from dataclasses import dataclass

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Row:
    """`theirs[their_index] == ours[our_index]`, theirs with its last two dimensions swapped first
    if `transpose`.

    An empty index is the whole tensor, which a loader can take as a view of the file. Several rows
    may share a name: a fused qkv is three regions of one of theirs, a stack of experts many regions
    of one of ours.
    """

    theirs: str
    ours: str
    transpose: bool = False
    their_index: Index = ()
    our_index: Index = ()


@dataclass(frozen=True)
class Layout:
    """One way in which a family's checkpoints lie on disk: all rows, and the names to ignore
    (regular expressions).
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
