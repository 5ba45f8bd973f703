"""How much memory keys and values may take, and how many pages of each kind of layer it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from ossia.config import ModelConfig
from ossia.engine.kv import CacheLimits, most_positions
from ossia.errors import OssiaError
from ossia.model.attention import layer_kind
from ossia.ops.paged import FP8, LayerKind, position_bytes
from ossia.options import EngineOptions
from ossia.system.memory import format_size, free_memory, parse_size

if TYPE_CHECKING:
    from ossia.model import Decoder

# A sliding kind keeps one cached window per this many positions that the other kinds cache: about
# one turn of conversation, because texts are mostly continued at the end of a turn.
POSITIONS_PER_WINDOW = 1024


# The most requests that run together, and the prompt tokens of a step, unless options say so.
CPU_BATCH, GPU_BATCH = 16, 64
CHUNK, LARGE_CHUNK = 512, 2048
_STORED = {"int8": torch.int8, "fp8": FP8}
# Of a GPU's free memory, left to compute in.
_WORKSPACE = 1 << 30


def asked(kv_memory: int | str | None) -> int | None:
    """`kv_memory` in bytes."""
    return parse_size(kv_memory) if isinstance(kv_memory, str) else kv_memory


def kv_dtype(options: EngineOptions, dense: torch.dtype) -> torch.dtype:
    """The type of stored keys and values."""
    return dense if options.kv is None else _STORED[options.kv]


def whole_text(config: ModelConfig, dtype: torch.dtype) -> int:
    """The bytes of the keys and values of one text as long as the context."""
    length = config.context_length
    kinds = [layer_kind(layer.attention) for layer in config.layers]
    return sum(position_bytes(k, dtype) * min(k.window or length, length) for k in kinds)


def room(
    options: EngineOptions, config: ModelConfig, dense: torch.dtype
) -> tuple[int, int, Callable[[int], str]]:
    """The bytes for keys and values of a model whose dense weights have that type: those that are
    asked for, and those that are wished for; and what so many bytes hold, in words.
    """
    size = asked(options.kv_memory)
    wished = whole_text(config, kv_dtype(options, dense)) if size is None else size
    return size or 0, wished, partial(holds, config, options, dense)


def holds(config: ModelConfig, options: EngineOptions, dense: torch.dtype, budget: int) -> str:
    """How long a text a GPU's engine could hold in so many bytes, for messages."""
    batch, chunk = options.max_batch or GPU_BATCH, options.prefill_chunk or LARGE_CHUNK
    limits = CacheLimits(options.page_size, chunk, batch, config.context_length)
    layers = [layer_kind(layer.attention) for layer in config.layers]

    def longest(dtype: torch.dtype) -> int:
        try:
            return most_positions(plan_pages(layers, budget, limits, dtype), limits)
        except OssiaError:
            return 0

    length = min(longest(kv_dtype(options, dense)), config.context_length)
    line = f"{format_size(budget)} hold a text of {length:,} tokens"
    if options.kv is None and length < config.context_length:
        line += f", or {min(longest(torch.int8), config.context_length):,} with --kv int8"
    return line


def kv_budget(decoder: Decoder, kv_memory: int | str | None, dtype: torch.dtype) -> int:
    """Bytes that keys and values may take: `kv_memory`, or a share of what is free.

    On a CPU the share is half of what the weights leave, because those that are mapped from files
    count as free. The system commits the memory only when a page is first written. On a GPU, where
    the pool is allocated at once, it is a quarter, or if that is less, what a text as long as the
    context takes. Raises OssiaError if `kv_memory` is more than what is free.
    """
    free = free_memory(decoder.device)
    if (size := asked(kv_memory)) is not None:
        if size > free:
            raise OssiaError(
                f"kv_memory of {format_size(size)} is more than the {format_size(free)} of memory "
                f"that is free on {decoder.device}"
            )
        return size
    if decoder.device.type == "cuda":
        return max(free // 4, min(whole_text(decoder.config, dtype), free - _WORKSPACE))
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
            f"--kv-memory of {budget:,} bytes holds no text: at least {least:,} bytes are needed"
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
