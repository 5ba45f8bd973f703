"""Attention over pages, and over whole rows as if each were one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.ops.backend import Backend, Where
from ossia.ops.paged import FP8, LayerKV, StepTables
from ossia.ops.triton.attention_kernels import append, decode, prefill
from ossia.ops.triton.fp8 import BITS, E4M3, PLAIN, lacks_fp8
from ossia.ops.triton.launch import DTYPES, card, counters, for_card, launch, power_of_2, runs
from ossia.ops.values import AttentionSpec, Documents, RopeTable

_LEAST_ROWS = 16  # of a tile that tensor cores multiply
_PAGE_TYPES = DTYPES | {torch.int8, FP8}
_PROGRAMS = 2  # of decoding for each multiprocessor, so that memory is never idle
_MOST_PARTS = 64


class _Blocks(NamedTuple):
    """The shapes of one kernel's tiles: rows (queries times heads of a group), keys."""

    rows: int
    keys: int
    warps: int
    stages: int


# Prefill of 16-bit numbers: by the architecture from which, and the head_dim up to which they hold.
# No tensor core multiplies float32 exactly.
_PREFILL = {
    80: {64: _Blocks(128, 64, 8, 3), 128: _Blocks(128, 64, 8, 2), 256: _Blocks(64, 32, 4, 2)},
    100: {64: _Blocks(64, 64, 4, 3), 128: _Blocks(128, 64, 8, 2), 256: _Blocks(64, 32, 4, 2)},
}
_PREFILL_FLOAT32 = _Blocks(32, 32, 4, 2)
_DECODE = _Blocks(_LEAST_ROWS, 64, 4, 3)
_DECODE_FLOAT32 = _Blocks(_LEAST_ROWS, 32, 4, 2)
_WIDEST = 256  # head_dim


class PagedAttention(Backend):
    """Attention that never waits for the host: lengths and tables are read by the kernels."""

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """As Backend.attention. Weights are rounded to q's type before they meet the values."""
        if not q.numel() or not _fits(q, k, v, spec, where, rope):
            return super().attention(q, k, v, spec, where, rope)
        if isinstance(where, LayerKV):
            call = _Call(_heads(q), spec, where, rope)
            k, v = _heads(k), _heads(v)
            if where.tables.single and where.tables.apart:
                return _decode(call, (k, v))
            _append(call, k, v)
            return (_decode if where.tables.single else _prefill)(call)
        if rope is not None:
            k = self.rotate(k, rope)
        rope = None if rope is None else _each_row(q, rope)
        pages = _as_pages(k, v, spec.window)
        return _prefill(_Call(_heads(q.flatten(0, 1)), spec, pages, rope)).view(q.shape)


def _fits(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, where: Where, rope: RopeTable | None
) -> bool:
    """Whether kernels compute this."""
    if isinstance(where, Documents) or spec.dropout or q.shape[-1] > _WIDEST:
        return False
    if isinstance(where, LayerKV) and not (
        where.keys.dtype == where.values.dtype in _PAGE_TYPES and where.keys.device == q.device
    ):
        return False
    rotated = rope is None or rope.cos.dtype is rope.sin.dtype is torch.float32
    return rotated and k.dtype == v.dtype == q.dtype and runs(q, k, v, spec.sinks)


@dataclass(frozen=True)
class _Call:
    """The arguments of one attention over pages; q with heads that lie behind one another."""

    q: Tensor
    spec: AttentionSpec
    kv: LayerKV
    rope: RopeTable | None

    @property
    def kv_heads(self) -> int:
        return self.kv.keys.shape[2]

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.kv_heads

    @property
    def quantized(self) -> bool:
        return self.kv.key_scales is not None

    @property
    def rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines (tokens, head_dim/2); any tensors if nothing is rotated."""
        if self.rope is None:
            return self.q, self.q
        return self.rope.cos.contiguous(), self.rope.sin.contiguous()

    @property
    def pages(self) -> tuple[Tensor, ...]:
        kv = self.kv
        keys, values = kv.keys, kv.values
        if keys.dtype is FP8:  # a type that kernels for older cards cannot even name
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        if kv.key_scales is None or kv.value_scales is None:
            return keys, values, keys, values
        return keys, values, kv.key_scales, kv.value_scales

    @property
    def constants(self) -> dict[str, Any]:
        """The parameters of all kernels that are fixed when they are compiled."""
        size = self.q.shape[-1]
        return {
            "HEADS": self.kv_heads,
            "SIZE": size,
            "PAGE": self.kv.keys.shape[1],
            "WIDTH": max(_LEAST_ROWS, power_of_2(size)),
            "ROTATED": self.rope is not None,
            "QUANTIZED": self.quantized,
            "FORM": self._form,
        }

    @property
    def _form(self) -> int:
        if self.kv.keys.dtype is not FP8:
            return PLAIN
        return BITS if lacks_fp8(self.q.device) else E4M3

    @property
    def attending(self) -> dict[str, Any]:
        """Those of the kernels that attend."""
        return {
            **self.constants,
            "GROUP": self.group,
            "WINDOW": self.spec.window or 0,
            "SINKS": self.spec.sinks is not None,
            "PRECISION": "ieee" if self.q.dtype is torch.float32 else "tf32",
        }


def _append(call: _Call, k: Tensor, v: Tensor) -> None:
    """Write this step's keys, rotated, and values to their pages."""
    tables = call.kv.tables
    single = tables.single
    starts = tables.lengths if single else tables.starts
    heads, size = k.shape[1:]
    options = {"ALL_HEADS": power_of_2(heads), "num_warps": 4 if heads * size >= 512 else 1}
    launch(
        append, (k.shape[0],), k, v, *call.rotation, *call.pages,
        tables.page_table, tables.lengths, starts, k.stride(0), v.stride(0),
        tables.page_table.stride(0), *_sequences(tables), SINGLE=single,
        **call.constants, **options,
    )  # fmt: skip


def _sequences(tables: StepTables) -> tuple[int, int]:
    """How many there are, and the steps of a binary search over them."""
    count = len(tables.lengths)
    return count, count.bit_length()


def _prefill(call: _Call) -> Tensor:
    """Sequences with any numbers of queries."""
    q, tables = call.q, call.kv.tables
    tokens, _, size = q.shape
    blocks = _PREFILL_FLOAT32
    if q.dtype is not torch.float32:
        shapes = for_card(_PREFILL, q.device)
        blocks = next(blocks for most, blocks in shapes.items() if size <= most)
    rows = power_of_2(call.group)
    queries = max(1, min(blocks.rows, max(_LEAST_ROWS, power_of_2(tokens * rows))) // rows)
    sequences, steps = _sequences(tables)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch(
        prefill, (tokens // queries + sequences, call.kv_heads), q, *call.rotation, *call.pages,
        _sinks(call), out, tables.page_table, tables.lengths, tables.starts, q.stride(0),
        tables.page_table.stride(0), sequences, steps,
        ROWS=rows, QUERIES=queries, KEYS=blocks.keys, num_warps=blocks.warps,
        num_stages=blocks.stages, **call.attending,
    )  # fmt: skip
    return out


def _decode(call: _Call, new: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """One query of each sequence. new: this step's keys and values, if they are not yet in the
    pages, and no sequence sees another's.
    """
    q, tables = call.q, call.kv.tables
    sequences, heads, size = q.shape
    blocks = _DECODE_FLOAT32 if q.dtype is torch.float32 else _DECODE
    most = tables.page_table.shape[1] * call.kv.keys.shape[1]  # positions that the table has
    seen = min(most, call.spec.window or most)
    wanted = _PROGRAMS * card(q.device).processors // (sequences * call.kv_heads)
    parts = power_of_2(max(1, min(wanted, _MOST_PARTS, -(-seen // blocks.keys))))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    partial = sums = out
    if parts > 1:
        shape = (sequences, heads, parts)
        partial = torch.empty((2, *shape), dtype=torch.float32, device=q.device)
        sums = torch.empty((*shape, size), dtype=torch.float32, device=q.device)
    launch(
        decode, (sequences, call.kv_heads, parts), q, *call.rotation, *call.pages, _sinks(call),
        out, partial, sums, counters(sequences * call.kv_heads, q.device),
        tables.page_table, tables.lengths, q.stride(0), tables.page_table.stride(0),
        *(new or (q, q)), *((0, 0) if new is None else (x.stride(0) for x in new)),
        APPEND=new is not None,
        ROWS=max(blocks.rows, power_of_2(call.group)), KEYS=blocks.keys, PARTS=parts,
        num_warps=blocks.warps, num_stages=blocks.stages, **call.attending,
    )  # fmt: skip
    return out


def _sinks(call: _Call) -> Tensor:
    """The sinks, or any tensor where there are none."""
    return call.q if call.spec.sinks is None else call.spec.sinks.contiguous()


def _heads(x: Tensor) -> Tensor:
    """x (tokens, heads, size) with each token's heads behind one another."""
    packed = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if packed else x.contiguous()


def _as_pages(k: Tensor, v: Tensor, window: int | None) -> LayerKV:
    """Whole rows (batch, length, kv_heads, head_dim) as sequences of one page each."""
    batch, length = k.shape[:2]
    device = k.device
    counts = torch.full((batch,), length, dtype=torch.int64, device=device)
    table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
    tables = StepTables(window, length, table, counts, counts)
    return LayerKV(k.contiguous(), v.contiguous(), tables)


def _each_row(q: Tensor, rope: RopeTable) -> RopeTable:
    """A table of one row's positions for all tokens of a batch, packed."""
    shape = (*q.shape[:2], q.shape[-1] // 2)
    cos, sin = (x.expand(shape).reshape(-1, shape[-1]) for x in rope)
    return RopeTable(cos, sin)
