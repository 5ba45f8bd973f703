"""Attention over pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import reference
from ossia.ops.cpu.native import TYPES, address, is_native, machine, wants_gradient
from ossia.ops.paged import LayerKV

# Beyond these the reference gathers and multiplies faster.
_ATTENTION_TOKENS = 64


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: LayerKV,
    *,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `reference.paged_attention`."""
    tokens, heads, head_dim = q.shape
    native = is_native(q, k, v, kv.keys, kv.values) and not wants_gradient(sinks)
    if not native or not 0 < tokens <= _ATTENTION_TOKENS:
        return reference.paged_attention(q, k, v, kv, sinks=sinks)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    tables = kv.tables
    table = tables.page_table.int().contiguous()
    lengths = tables.lengths.long().contiguous()
    query_lengths = tables.query_lengths.long().contiguous()
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    out = torch.empty_like(q)
    pages, page_size, kv_heads, _ = kv.keys.shape
    assert k.shape == v.shape == (tokens, kv_heads, head_dim)
    assert kv.keys.shape == kv.values.shape == (pages, page_size, kv_heads, head_dim)
    assert kv.keys.is_contiguous()
    assert kv.values.is_contiguous()
    assert heads % kv_heads == 0
    assert lengths.shape == query_lengths.shape == table.shape[:1]
    assert sinks is None or sinks.shape == (heads,)
    machine().paged_attention(
        kv.keys.data_ptr(),
        kv.values.data_ptr(),
        table.data_ptr(),
        lengths.data_ptr(),
        query_lengths.data_ptr(),
        pages,
        page_size,
        table.shape[1],
        table.shape[0],
        heads,
        kv_heads,
        head_dim,
        tables.window or 0,
        address(sinks),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        TYPES[q.dtype],
        tokens,
    )
    return out
