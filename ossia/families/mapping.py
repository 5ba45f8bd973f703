"""Rows that map a region of a checkpoint's tensor to a region of our parameter, both ways."""

from __future__ import annotations

from dataclasses import dataclass

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Row:
    """`theirs[their_index] == ours[our_index]`; if `transpose`, the last two dimensions of theirs
    are swapped first.

    An empty index is the whole tensor, which a loader can use as a view of the file. Several rows
    may share a name: a fused qkv is three regions of one of their tensors, a stack of experts many
    regions of one of our parameters.
    """

    theirs: str
    ours: str
    transpose: bool = False
    their_index: Index = ()
    our_index: Index = ()


@dataclass(frozen=True)
class Layout:
    """One way in which a family's checkpoints are stored: all rows, and regular expressions for the
    names to ignore.

    in_memory: whether names and shapes are also those of transformers' modules in memory, which
    adapters refer to.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    in_memory: bool = False
