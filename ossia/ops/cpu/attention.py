"""Attention over pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops.backend import Backend, Where
from ossia.ops.cpu.native import TYPES, address, is_native, machine, wants_gradient
from ossia.ops.paged import LayerKV
from ossia.ops.values import AttentionSpec, RopeTable


class PagedAttention(Backend):
    """Native attention over pages."""

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """As Backend.attention; the rotated queries are not rounded to their type."""
        tokens, heads, head_dim = q.shape[-3:]
        cos, sin = rope or (None, None)
        sinks = spec.sinks
        if (
            not isinstance(where, LayerKV)
            or not tokens
            or not is_native(q, k, v)
            or where.keys.dtype not in (q.dtype, torch.int8)
            or where.values.dtype != where.keys.dtype
            or wants_gradient(sinks)
            or (sinks is not None and (sinks.dtype not in TYPES or not sinks.is_cpu))
            or (cos is not None and cos.dtype is not torch.float32)
        ):
            return super().attention(q, k, v, spec, where, rope)
        # Names keep what may have been copied alive for the length of the call.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        kv, tables = where, where.tables
        table = tables.page_table.int().contiguous()
        lengths = tables.lengths.long().contiguous()
        query_lengths = tables.query_lengths.long().contiguous()
        sinks = None if sinks is None else sinks.contiguous()
        if cos is not None and sin is not None:
            cos, sin = cos.contiguous(), sin.contiguous()
            assert cos.shape == sin.shape == (tokens, head_dim // 2)
            assert head_dim % 2 == 0
        out = torch.empty_like(q)
        pages, page_size, kv_heads, _ = kv.keys.shape
        assert k.shape == v.shape == (tokens, kv_heads, head_dim)
        assert kv.keys.shape == kv.values.shape == (pages, page_size, kv_heads, head_dim)
        assert kv.keys.is_contiguous()
        assert kv.values.is_contiguous()
        assert heads % kv_heads == 0
        assert lengths.shape == query_lengths.shape == table.shape[:1]
        assert sinks is None or sinks.shape == (heads,)
        scales = kv.key_scales, kv.value_scales
        assert all(
            s is None or (s.shape == kv.keys.shape[:3] and s.is_contiguous()) for s in scales
        )
        assert (scales[0] is None) == (scales[1] is None) == (kv.keys.dtype is not torch.int8)
        machine().paged_attention(
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            address(kv.key_scales),
            address(kv.value_scales),
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
            spec.window or 0,
            address(sinks),
            TYPES[q.dtype if sinks is None else sinks.dtype],
            address(cos),
            address(sin),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            TYPES[q.dtype],
            tokens,
        )
        return out
