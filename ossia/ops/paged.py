"""Keys and values in pages: the pool of all layers, and the page tables of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn  # a sign, four bits of exponent, three of mantissa; no infinity
_LARGEST_FP8 = 448.0


@dataclass(frozen=True)
class LayerKind:
    """Layers that see the same positions and store the same shapes, so they share page tables."""

    window: int | None
    num_kv_heads: int
    head_dim: int


def position_bytes(kind: LayerKind, dtype: torch.dtype) -> int:
    """Bytes of one position's keys and values in one layer, including int8's scales."""
    scale = torch.float32.itemsize if dtype is torch.int8 else 0
    return 2 * kind.num_kv_heads * (kind.head_dim * dtype.itemsize + scale)


class PagePool:
    """The storage: for each kind, keys and values of (layers of that kind, pages, page_size,
    kv_heads, head_dim). Page 0 belongs to no text: padded rows of a step write to it.

    `layers` is the kind of each layer of the model, in order. With int8 each position and head has
    one float32 scale for its key and one for its value; FP8 has none (see `to_fp8`). On a CPU the
    system commits memory only when a page is first written, so unused pages cost nothing.
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
        self.key_scales: dict[LayerKind, Tensor] = {}
        self.value_scales: dict[LayerKind, Tensor] = {}
        for kind, count in counts.items():
            shape = (count, num_pages[kind], page_size, kind.num_kv_heads, kind.head_dim)
            self.keys[kind] = torch.empty(shape, dtype=dtype, device=device)
            self.values[kind] = torch.empty(shape, dtype=dtype, device=device)
            if dtype is torch.int8:
                self.key_scales[kind] = torch.empty(shape[:-1], device=device)
                self.value_scales[kind] = torch.empty(shape[:-1], device=device)

    @property
    def nbytes(self) -> int:
        """The memory that all pages take once they are written."""
        stores = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(tensor.nbytes for store in stores for tensor in store.values())


@dataclass(frozen=True)
class StepTables:
    """The sequences of one step, for all layers of a kind.

    page_table: int32 (sequences, max_pages); column p is the page of positions p * page_size and
    on, or anything if no query of the step sees them. lengths: int64 (sequences,), the positions
    of each sequence after this step. query_lengths: int64 (sequences,), how many of them, at the
    end, are this step's packed tokens. spans: both numbers of each sequence on the host, if they
    are known there; reading them from the tensors waits for the device. one_query: whether it is
    known without them that each sequence has one query. apart: whether it is known that no sequence
    of the step sees what another one writes, as drafted tokens of one text do.

    A slot is the place of a position in the pool: page * page_size + position % page_size. The
    slots are on the tables' device, and computed once for all layers.
    """

    window: int | None
    page_size: int
    page_table: Tensor
    lengths: Tensor
    query_lengths: Tensor
    spans: Sequence[tuple[int, int]] | None = None
    one_query: bool = False
    apart: bool = False

    @cached_property
    def single(self) -> bool:
        """Whether the host knows that each sequence has one query."""
        return self.one_query or (
            self.spans is not None and all(count == 1 for _, count in self.spans)
        )

    @cached_property
    def starts(self) -> Tensor:
        """int64 (sequences + 1,): the first packed token of each sequence, and their number."""
        return F.pad(self.query_lengths.cumsum(0), (1, 0))

    @cached_property
    def _spans(self) -> Sequence[tuple[int, int]]:
        if self.spans is not None:
            return self.spans
        return list(zip(self.lengths.tolist(), self.query_lengths.tolist(), strict=True))

    @cached_property
    def counts(self) -> list[int]:
        """`query_lengths` as Python numbers."""
        return [count for _, count in self._spans]

    @cached_property
    def seen(self) -> list[Tensor]:
        """For each sequence the slots, int64, of the positions that any query can see, in order;
        empty without queries.
        """
        return [self._slots(i, length, count) for i, (length, count) in enumerate(self._spans)]

    @cached_property
    def written(self) -> Tensor:
        """The slots, int64 (tokens,), of this step's packed tokens."""
        pairs = zip(self.seen, self.counts, strict=True)
        return torch.cat([seen[len(seen) - count :] for seen, count in pairs])

    def _slots(self, sequence: int, length: int, count: int) -> Tensor:
        oldest = 0 if self.window is None else max(0, length - count - self.window + 1)
        first = oldest if count else length
        positions = torch.arange(first, length, device=self.page_table.device)
        pages = self.page_table[sequence].index_select(0, positions // self.page_size)
        return pages.long() * self.page_size + positions % self.page_size


@dataclass(frozen=True)
class LayerKV:
    """The keys and values that one layer's attention reads and writes in one step.

    keys, values: (pages, page_size, kv_heads, head_dim), contiguous. If they are int8, their scales
    are float32 (pages, page_size, kv_heads); else None. Numbers in FP8 are rounded by `to_fp8`.
    """

    keys: Tensor
    values: Tensor
    tables: StepTables
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write this step's keys and values (tokens, kv_heads, head_dim) to their slots."""
        slots = self.tables.written
        for pages, page_scales, x in (
            (self.keys, self.key_scales, k),
            (self.values, self.value_scales, v),
        ):
            if page_scales is not None:
                x, scales = quantize(x)
                page_scales.flatten(0, 1).index_copy_(0, slots, scales)
            x = to_fp8(x) if pages.dtype is FP8 else x.to(pages.dtype)
            _bytes(pages).flatten(0, 1).index_copy_(0, slots, _bytes(x))

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (slots, kv_heads, head_dim) as stored; int8 and FP8 as float32."""

        def gather(pages: Tensor, page_scales: Tensor | None) -> Tensor:
            x = _bytes(pages).flatten(0, 1).index_select(0, slots)
            if page_scales is None:
                return x.view(FP8).float() if pages.dtype is FP8 else x
            return x * page_scales.flatten(0, 1).index_select(0, slots)[..., None]

        return gather(self.keys, self.key_scales), gather(self.values, self.value_scales)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 (..., head_dim) and scales float32 (...), one per position and head, so that the
    largest magnitude becomes 127. A vector with NaN or infinity becomes all NaN.
    """
    x = x.float()
    scales = x.abs().amax(-1) / 127
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    codes = torch.where(scales[..., None] > 0, x / scales[..., None], 0)
    return codes.round().clamp(-127, 127).to(torch.int8), scales


def to_fp8(x: Tensor) -> Tensor:
    """x in FP8, rounded to nearest even. What is beyond 448, its largest number, becomes that, and
    infinity NaN.
    """
    x = x.float()
    near = x.clamp(-_LARGEST_FP8, _LARGEST_FP8)
    return torch.where(x.isfinite(), near, torch.nan).to(FP8)


def _bytes(x: Tensor) -> Tensor:
    """FP8 as bytes, because torch can neither gather nor scatter it."""
    return x.view(torch.uint8) if x.dtype is FP8 else x


@dataclass(frozen=True)
class PagedKV:
    """The sequences of one step over a pool; see StepTables for the tensors."""

    pool: PagePool
    page_tables: Mapping[LayerKind, Tensor]
    lengths: Tensor
    query_lengths: Tensor
    spans: Sequence[tuple[int, int]] | None = None
    one_query: bool = False
    apart: bool = False

    def layer(self, index: int) -> LayerKV:
        """The view of layer `index`."""
        kind, slot = self.pool.slots[index]
        pool = self.pool
        quantized = kind in pool.key_scales
        return LayerKV(
            pool.keys[kind][slot],
            pool.values[kind][slot],
            self._tables[kind],
            pool.key_scales[kind][slot] if quantized else None,
            pool.value_scales[kind][slot] if quantized else None,
        )

    @cached_property
    def _tables(self) -> dict[LayerKind, StepTables]:
        size, counts = self.pool.page_size, (self.lengths, self.query_lengths)
        known = self.spans, self.one_query, self.apart
        return {
            kind: StepTables(kind.window, size, table, *counts, *known)
            for kind, table in self.page_tables.items()
        }
