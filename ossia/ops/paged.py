"""Keys and values in pages: a pool for each kind of layer, and the tables of one step over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerKind:
    """Layers that see the same positions and store the same shapes, and so share page tables."""

    window: int | None
    num_kv_heads: int
    head_dim: int


class PagePool:
    """The storage: for each kind, keys and values of (layers of that kind, pages, page_size,
    kv_heads, head_dim).

    `layers` is the kind of each layer of the model, in order. On a CPU the memory is committed by
    the system only when a page is first written, so a generous pool costs nothing.
    """

    def __init__(
        self,
        layers: Sequence[LayerKind],
        num_pages: Mapping[LayerKind, int],
        *,
        page_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.page_size = page_size
        self.kinds = tuple(dict.fromkeys(layers))
        self.num_pages = {kind: num_pages[kind] for kind in self.kinds}
        self.slots: list[tuple[LayerKind, int]] = []
        counts = dict.fromkeys(self.kinds, 0)
        for kind in layers:
            self.slots.append((kind, counts[kind]))
            counts[kind] += 1
        self.keys: dict[LayerKind, Tensor] = {}
        self.values: dict[LayerKind, Tensor] = {}
        for kind, count in counts.items():
            shape = (count, num_pages[kind], page_size, kind.num_kv_heads, kind.head_dim)
            self.keys[kind] = torch.empty(shape, dtype=dtype, device=device)
            self.values[kind] = torch.empty(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class LayerKV:
    """What attention of one layer reads and writes in one step.

    keys, values: (pages, page_size, kv_heads, head_dim); page_table: int32 (sequences, max_pages),
    the page that holds positions p * page_size .. of a sequence at column p, -1 where there is
    none; lengths, query_lengths: (sequences,).
    """

    keys: Tensor
    values: Tensor
    page_table: Tensor
    lengths: Tensor
    query_lengths: Tensor

    @property
    def page_size(self) -> int:
        return self.keys.shape[1]


@dataclass(frozen=True)
class PagedKV:
    """The sequences of one step over a pool.

    page_tables: for each kind, int32 (sequences, max_pages). lengths: int64 (sequences,), the
    positions a sequence holds after this step; query_lengths: int64 (sequences,), how many of them,
    the last ones, are this step's packed tokens.
    """

    pool: PagePool
    page_tables: Mapping[LayerKind, Tensor]
    lengths: Tensor
    query_lengths: Tensor

    def layer(self, index: int) -> LayerKV:
        """The view of layer `index`."""
        kind, slot = self.pool.slots[index]
        return LayerKV(
            self.pool.keys[kind][slot],
            self.pool.values[kind][slot],
            self.page_tables[kind],
            self.lengths,
            self.query_lengths,
        )
