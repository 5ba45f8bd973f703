"""Rows that map a region of a checkpoint's tensor to a region of our parameter, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    prefix: the beginning of names that a file may leave out, as base models without a head do.
    tied: other names of tensors. A file may hold a tensor under its own name, the other, or both.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    in_memory: bool = False
    prefix: str = ""
    tied: Mapping[str, str] = field(default_factory=dict)


HEAD = "lm_head.weight"

NO_WEIGHTS = (
    # The frequencies of RoPE, once a buffer of each layer.
    r"(.*\.)?rotary_emb\.inv_freq",
    # Scales for keys and values in 8-bit formats, which have no effect on others.
    r"(.*\.)?self_attn\.(attn\.)?([qkv]|kv|prob)_(scale|zero_point)",
    r"(.*\.)?(kv_cache|[qkv]_proj)\.([qkv]|kv|output)_(scale|zero_point)",
)
"""Names of tensors in files of several families that do not take part in the computation."""
