"""Which page holds which positions of which sequence: reserved by worst case at admission, so that
a sequence that has started can never run out.

A kind of layer with a window holds a bounded number of pages however long the text: those that some
query of this step or a later one can still see.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ossia.ops.paged import LayerKind, position_bytes


def pages_for(kind: LayerKind, positions: int, page_size: int, chunk: int) -> int:
    """The most pages that a sequence of `positions` holds at once, read `chunk` at a time."""
    pages = -(-positions // page_size)
    if kind.window is None:
        return pages
    # A step's queries see at most window + chunk - 1 positions, which may begin inside a page.
    return min(pages, -(-(kind.window + chunk) // page_size) + 1)


def plan_pages(
    layers: Sequence[LayerKind],
    context_length: int,
    *,
    max_tokens: int | None,
    page_size: int,
    chunk: int,
    max_sequences: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[LayerKind, int]:
    """How many pages each kind of `layers` needs for `max_tokens` positions over all sequences.

    Windowed kinds get enough for `max_sequences` of any length, so that they are never what a
    sequence waits for. With max_tokens None: full contexts for all sequences, or what half of the
    memory holds (of the free memory on a GPU; of all memory elsewhere, where pages cost nothing
    until they are written).
    """
    windowed = {
        kind: max_sequences * pages_for(kind, context_length, page_size, chunk)
        for kind in layers
        if kind.window is not None
    }
    full = {kind for kind in layers if kind.window is None}
    if max_tokens is not None:
        pages = -(-max_tokens // page_size)
    else:
        pages = max_sequences * -(-context_length // page_size)
        if full:
            page_bytes = {
                kind: page_size * position_bytes(kind, dtype) * layers.count(kind)
                for kind in layers
            }
            room = _memory(device) // 2
            beside = room - sum(page_bytes[kind] * count for kind, count in windowed.items())
            held = max(
                beside // sum(page_bytes[kind] for kind in full),
                room // sum(page_bytes.values()),  # where full kinds get fewer than windowed ones
            )
            pages = max(1, min(pages, held))
    # A sequence never holds more pages of a windowed kind than of a full one.
    planned = {kind: min(count, pages) if full else count for kind, count in windowed.items()}
    return {kind: planned.get(kind, pages) for kind in layers}


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf"):  # Windows
        return 8 * 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class KindPages:
    """The pages of one kind: a free list, and a table row for each sequence that may run at once.

    A row's pages are those of columns first[row] .. end[row] - 1; all other columns are -1.
    """

    def __init__(self, num_pages: int, rows: int, columns: int) -> None:
        self.free = list(range(num_pages - 1, -1, -1))
        self.unreserved = num_pages
        self.table = torch.full((rows, columns), -1, dtype=torch.int32)
        self.first = [0] * rows
        self.end = [0] * rows

    def drop_before(self, row: int, column: int) -> None:
        """Free the row's pages in columns below `column`."""
        stop = min(column, self.end[row])
        if stop > self.first[row]:
            self.free += self.table[row, self.first[row] : stop].tolist()
            self.table[row, self.first[row] : stop] = -1
            self.first[row] = stop

    def grow_to(self, row: int, column: int) -> None:
        """Give the row a page in each column below `column`."""
        if column > self.end[row]:
            pages = [self.free.pop() for _ in range(column - self.end[row])]
            self.table[row, self.end[row] : column] = torch.tensor(pages, dtype=torch.int32)
            self.end[row] = column

    def clear(self, row: int) -> None:
        """Free all pages of the row."""
        self.drop_before(row, self.end[row])
        self.first[row] = self.end[row] = 0


class PageAllocator:
    """Page tables of up to `max_sequences` running sequences, named by their ids.

    `chunk` is the most positions that a sequence grows by in one step.
    """

    def __init__(
        self,
        num_pages: Mapping[LayerKind, int],
        *,
        page_size: int,
        chunk: int,
        max_sequences: int,
        context_length: int,
    ) -> None:
        self.page_size = page_size
        self.chunk = chunk
        self.num_pages = dict(num_pages)
        self.columns = -(-context_length // page_size)  # of a table that holds a whole context
        self.kinds = {
            kind: KindPages(count, max_sequences, self.columns) for kind, count in num_pages.items()
        }
        self._rows: dict[int, int] = {}
        self._reserved: dict[int, dict[LayerKind, int]] = {}
        self._free_rows = list(range(max_sequences - 1, -1, -1))

    @property
    def most_positions(self) -> int:
        """The longest sequence that the pool could hold if it were alone."""
        longest = self.columns * self.page_size
        for kind, count in self.num_pages.items():
            if pages_for(kind, longest, self.page_size, self.chunk) > count:
                longest = count * self.page_size
        return longest

    def admit(self, sequence: int, positions: int) -> bool:
        """Reserve what a sequence of up to `positions` can come to hold; False if it must wait."""
        need = {kind: pages_for(kind, positions, self.page_size, self.chunk) for kind in self.kinds}
        if not self._free_rows or any(self.kinds[kind].unreserved < need[kind] for kind in need):
            return False
        for kind, count in need.items():
            self.kinds[kind].unreserved -= count
        self._reserved[sequence] = need
        self._rows[sequence] = self._free_rows.pop()
        return True

    def extend(self, sequence: int, computed: int, length: int) -> None:
        """Make room for positions computed .. length - 1, and free what none of them, nor any
        later one, can see."""
        row = self._rows[sequence]
        for kind, pages in self.kinds.items():
            if kind.window is not None:
                pages.drop_before(row, (computed - kind.window + 1) // self.page_size)
            pages.grow_to(row, -(-length // self.page_size))
            held = pages.end[row] - pages.first[row]
            assert held <= self._reserved[sequence][kind], (kind, held)

    def release(self, sequence: int) -> None:
        """Free everything that the sequence holds or has reserved."""
        row = self._rows.pop(sequence)
        for kind, count in self._reserved.pop(sequence).items():
            self.kinds[kind].clear(row)
            self.kinds[kind].unreserved += count
        self._free_rows.append(row)

    def tables(self, sequences: Sequence[int], length: int) -> dict[LayerKind, Tensor]:
        """For each kind int32 (sequences, ceil(length / page_size)), -1 where there is no page."""
        rows = [self._rows[sequence] for sequence in sequences]
        columns = -(-length // self.page_size)
        return {kind: pages.table[rows, :columns] for kind, pages in self.kinds.items()}
