"""Attention over pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import _native
from ossia.ops.backend import Backend, Where
from ossia.ops.cpu.native import DTYPES, is_native, machine, wants_gradient
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
        sinks = spec.sinks
        if (
            not isinstance(where, LayerKV)
            or not q.shape[0]
            or not is_native(q, k, v)
            or where.keys.dtype not in (q.dtype, torch.int8)
            or where.values.dtype != where.keys.dtype
            or wants_gradient(sinks)
            or (sinks is not None and (sinks.dtype not in DTYPES or not sinks.is_cpu))
            or (rope is not None and rope.cos.dtype is not torch.float32)
        ):
            return super().attention(q, k, v, spec, where, rope)
        pages = _native.Pages(where.keys, where.values, where.key_scales, where.value_scales)
        tables = where.tables
        held = _native.Tables(
            tables.page_table.int().contiguous(),
            tables.lengths.long().contiguous(),
            tables.query_lengths.long().contiguous(),
        )
        sinks = None if sinks is None else sinks.contiguous()
        cos, sin = (None, None) if rope is None else (rope.cos.contiguous(), rope.sin.contiguous())
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        window = spec.window or 0
        machine().paged_attention(q, k, v, out, pages, held, window, sinks, cos, sin)
        return out
