"""Engines whose cache holds a given number of positions, and their steps."""

from __future__ import annotations

from typing import Any

import torch

from ossia.engine import Engine, TokenOutput
from ossia.engine.capacity import kv_dtype, plan_pages
from ossia.engine.kv import CacheLimits
from ossia.options import EngineOptions


def engine(decoder: Any, positions: int | None = None, draft: Any = None, **options: Any) -> Engine:
    """An engine for at most `max_batch` (8 by default) texts; layers that see whole texts hold
    `positions` (by default of all those texts at full length), rounded up to pages.
    """
    options = {"max_batch": 8, "prefill_chunk": 64, "page_size": 16, **options}
    most = options["max_batch"] * decoder.config.context_length
    size = memory(decoder, most if positions is None else positions, options)
    if draft is not None:
        size = 2 * size * (len(decoder.layer_kinds) + len(draft.layer_kinds))
    return Engine(decoder, EngineOptions(kv_memory=size, **options), draft=draft)


def step(engine: Engine) -> list[TokenOutput]:
    """The outputs of a step in which nothing fails."""
    outputs = []
    for output in engine.step():
        assert isinstance(output, TokenOutput), output
        outputs.append(output)
    return outputs


def memory(decoder: Any, positions: int, options: dict[str, Any]) -> int:
    """The least bytes in which `plan_pages` finds room for them."""
    limits = CacheLimits(
        options["page_size"],
        options["prefill_chunk"],
        options["max_batch"],
        decoder.config.context_length,
    )
    pages = 1 + -(-positions // limits.page_size)
    dtype = kv_dtype(EngineOptions(kv=options.get("kv")), decoder.dtype)
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        if _most(decoder, middle, limits, dtype) >= pages:
            high = middle
        else:
            low = middle + 1
    return low


def _most(decoder: Any, budget: int, limits: CacheLimits, dtype: torch.dtype) -> int:
    try:
        return max(plan_pages(decoder.layer_kinds, budget, limits, dtype).values())
    except Exception:
        return 0
