"""How much memory keys and values may take, and how many pages of each kind of layer it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ossia.engine.kv import CacheLimits
from ossia.errors import OssiaError
from ossia.ops.paged import LayerKind, position_bytes
from ossia.system.memory import format_size, free_memory, parse_size

if TYPE_CHECKING:
    from ossia.model import Decoder

# A sliding kind keeps one cached window per this many positions that the other kinds cache: about
# one turn of conversation, because texts are mostly continued at the end of a turn.
POSITIONS_PER_WINDOW = 1024


def kv_budget(decoder: Decoder, kv_memory: int | str | None) -> int:
    """Bytes that keys and values may take: `kv_memory`, or a share of what is free.

    On a CPU the share is half of what the weights leave, because those that are mapped from files
    count as free. The system commits the memory only when a page is first written. On a GPU it is a
    quarter, because there the pool is allocated at once. Raises OssiaError if `kv_memory` is more
    than what is free.
    """
    free = free_memory(decoder.device)
    if kv_memory is not None:
        size = parse_size(kv_memory) if isinstance(kv_memory, str) else kv_memory
        if size > free:
            raise OssiaError(
                f"kv_memory of {format_size(size)} is more than the {format_size(free)} of memory "
                f"that is free on {decoder.device}"
            )
        return size
    if decoder.device.type == "cuda":
        return free // 4
    weights = sum(weight.nbytes for weight in (*decoder.parameters(), *decoder.buffers()))
    return max(free - weights, free // 8) // 2


def shares(budget: int, decoder: Decoder, draft: Decoder | None) -> tuple[int, int]:
    """A budget divided so that a model and its draft model can hold equally long texts."""
    if draft is None:
        return budget, 0
    mine, its = (
        sum(position_bytes(kind, model.dtype) for kind in model.layer_kinds)
        for model in (decoder, draft)
    )
    return budget * mine // (mine + its), budget * its // (mine + its)


def plan_pages(
    layers: Sequence[LayerKind], budget: int, limits: CacheLimits, dtype: torch.dtype
) -> dict[LayerKind, int]:
    """The most pages of each kind of `layers`, scratch page 0 included, that `budget` bytes hold.

    Kinds that see the whole text share one number: a text takes as many of each. A sliding kind
    gets what running texts need at once, and windows to continue cached texts from. No kind gets
    more than twice what `max_texts` full contexts take. Raises OssiaError if the budget is too
    small for any text.
    """
    page_bytes = {
        kind: limits.page_size * position_bytes(kind, dtype) * layers.count(kind)
        for kind in dict.fromkeys(layers)
    }

    def cost(pages: Mapping[LayerKind, int]) -> int:
        return sum(page_bytes[kind] * count for kind, count in pages.items())

    low, high = 1, 2 * limits.max_texts * limits.columns
    if (least := cost(_pages(page_bytes, low, limits))) > budget:
        raise OssiaError(
            f"kv_memory of {format_size(budget)} holds no text: at least {format_size(least)} are "
            "needed"
        )
    while low < high:
        middle = (low + high + 1) // 2
        if cost(_pages(page_bytes, middle, limits)) <= budget:
            low = middle
        else:
            high = middle - 1
    return _pages(page_bytes, low, limits)


def _pages(
    kinds: Mapping[LayerKind, int], columns: int, limits: CacheLimits
) -> dict[LayerKind, int]:
    """Pages by kind if those that see the whole text get `columns`, and each its scratch page."""
    only_sliding = all(kind.window is not None for kind in kinds)
    pages = {}
    for kind in kinds:
        pages[kind] = 1 + columns
        if kind.window is not None and not only_sliding:
            pages[kind] = 1 + _sliding(kind.window, columns, limits)
    return pages


def _sliding(window: int, columns: int, limits: CacheLimits) -> int:
    size = limits.page_size
    one = limits.window_pages(window)
    running = limits.max_texts * limits.window_pages(window, 2) + -(-limits.chunk // size)
    windows = -(-columns * size // POSITIONS_PER_WINDOW)
    cached = windows * -(-(window - 1) // size)
    return min(columns, max(one, min(running, columns // 2) + cached))
