"""The training backend: the reference's operations, with attention whose memory is linear in the
length, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import Router
from ossia.ops.backend import Backend, Where
from ossia.ops.paged import LayerKV
from ossia.ops.values import AttentionSpec, RopeTable, Routing

# Torch's tiled kernel (FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691) and its
# gradient. They are called directly because the public function hides the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_SMALLEST_BLOCK = (
    32  # queries of a sliding layer; smaller blocks spend more on calls than on products
)


class Training(Backend):
    """The definition, with attention whose memory is linear in the length.

    on_route, where it is set, is called with the logits (tokens, experts) and the number of chosen
    experts whenever a router's logits are routed: what a balance loss reads.
    """

    name = "training"

    def __init__(self) -> None:
        self.on_route: Callable[[Tensor, int], None] | None = None

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """As Backend.attention; over whole rows in the dtype of v.

        Scores exist only within a tile, and a window's mask covers one block. With dropout, and on
        other devices than the CPU, the definition runs instead.
        """
        fused = q.device.type == "cpu" and not spec.dropout and q.shape[1] == k.shape[1]
        if isinstance(where, LayerKV) or not fused or not q.numel():
            return super().attention(q, k, v, spec, where, rope)
        if rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        documents = None if where is None else where.ids
        q, k = q.to(v.dtype), k.to(v.dtype)
        dtype = self.attention_dtype(v.dtype)
        pieces = [*_pieces(q.shape[1], spec.window, documents, dtype)]
        return _Attention.apply(q, k, v, spec.sinks, _Plan(pieces, dtype))

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that attention over queries, keys and values of `dtype` is computed in."""
        return dtype

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route."""
        if self.on_route is not None:
            self.on_route(logits, chosen)
        return super().route(logits, chosen, router)


def for_device(device: torch.device) -> Training:
    """The training backend for the CPU or a GPU: the native one, where that was built."""
    if device.type == "cuda":
        from ossia.ops.triton.training import TritonTraining

        return TritonTraining()
    try:
        from ossia.ops.cpu.training import NativeTraining
    except ImportError:
        return Training()
    return NativeTraining()


@dataclass(frozen=True)
class _Piece:
    """Queries and the keys that some of them see: the same positions, or a band of `window`."""

    rows: slice
    queries: slice
    keys: slice
    mask: Tensor | None  # added to the scores; None is plain causal


@dataclass(frozen=True)
class _Plan:
    """All pieces, and the dtype that they are computed in."""

    pieces: list[_Piece]
    dtype: torch.dtype


def _pieces(
    length: int, window: int | None, documents: Tensor | None, dtype: torch.dtype
) -> Iterator[_Piece]:
    """The pieces that make up all of attention: one per document; a document longer than the
    window is split into blocks.
    """
    for rows, start, stop in _documents(length, documents):
        first = stop if window is None else min(stop, start + window)
        yield _Piece(rows, slice(start, first), slice(start, first), None)
        if window is not None and first < stop:
            step = max(window, _SMALLEST_BLOCK)
            mask = _band(min(step, stop - first), window, dtype)
            for i in range(first, stop, step):
                count = min(step, stop - i)
                keys = slice(i - window + 1, i + count)
                yield _Piece(rows, slice(i, i + count), keys, mask[:count, : count + window - 1])


def _documents(length: int, documents: Tensor | None) -> Iterator[tuple[slice, int, int]]:
    """(rows, start, stop) of every document; neighbouring rows with equal bounds are merged."""
    if documents is None:
        yield slice(None), 0, length
        return
    bounds: list[list[int]] = [[0] for _ in range(len(documents))]
    for row, place in documents.diff(dim=1).nonzero().tolist():
        bounds[row].append(place + 1)
    first = 0
    for row in range(1, len(bounds) + 1):
        if row == len(bounds) or bounds[row] != bounds[first]:
            own = bounds[first]
            for start, stop in zip(own, [*own[1:], length], strict=True):
                yield slice(first, row), start, stop
            first = row


def _band(queries: int, window: int, dtype: torch.dtype) -> Tensor:
    """(queries, queries + window - 1): query i sees the `window` keys from key i on."""
    distance = torch.arange(queries + window - 1) - torch.arange(queries)[:, None]
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


class _Attention(torch.autograd.Function):
    """Attention piece by piece; sinks enter by their share of each softmax.

    Let s be the sink's logit and L = logaddexp(lse, s). Every probability is exp(score - L), so the
    output is that without sinks times exp(lse - L), and the kernel's gradient is exact if it is
    given that output and L. The sink's column has no value, so its gradient is only the softmax's:
    -exp(s - L) * (gradient . output).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        pieces, dtype = plan.pieces, plan.dtype
        batch, length, heads, _ = q.shape
        wide = torch.promote_types(dtype, torch.float32)
        whole = len(pieces) == 1  # of which nothing is copied
        out = torch.empty(0) if whole else torch.empty_like(q, dtype=dtype)
        total = torch.empty(0) if whole else torch.empty(batch, heads, length, dtype=wide)
        for piece in pieces:
            queries, keys, values = _taken(piece, dtype, q, k, v)
            part, lse = _flash(
                queries, keys, values, is_causal=piece.mask is None, attn_mask=piece.mask
            )
            if whole:
                out, total = part.transpose(1, 2), lse
            else:
                out[piece.rows, piece.queries] = part.transpose(1, 2)
                total[piece.rows, :, piece.queries] = lse
        if sinks is not None:
            joined = torch.logaddexp(total, sinks.to(wide)[:, None])
            out.mul_((total - joined).exp_().transpose(1, 2)[..., None])
            total = joined
        out = out.to(q.dtype)
        ctx.pieces, ctx.dtype = pieces, dtype
        ctx.save_for_backward(q, k, v, sinks, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, total = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            share = (sinks.to(total.dtype)[:, None] - total).exp_().transpose(1, 2)
            taken = (gradient * out).sum(-1, dtype=total.dtype)  # (batch, length, heads)
            d_sinks = -(share * taken).sum((0, 1)).to(sinks.dtype)

        def parts_of(piece: _Piece) -> list[Tensor]:
            tensors = _taken(piece, ctx.dtype, q, k, v)
            slope, result = (
                x[piece.rows, piece.queries].to(ctx.dtype).transpose(1, 2) for x in (gradient, out)
            )
            lse, causal = total[piece.rows, :, piece.queries], piece.mask is None
            parts = _flash_backward(slope, *tensors, result, lse, 0.0, causal, attn_mask=piece.mask)
            return [part.transpose(1, 2) for part in parts]

        if len(ctx.pieces) == 1:
            dq, dk, dv = (part.to(q.dtype) for part in parts_of(ctx.pieces[0]))
            return dq, dk, dv, d_sinks, None
        # Only blocks of a sliding layer share keys, so only dk and dv are sums.
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k, dtype=ctx.dtype), torch.zeros_like(v, dtype=ctx.dtype)
        for piece in ctx.pieces:
            parts = parts_of(piece)
            dq[piece.rows, piece.queries] = parts[0]
            dk[piece.rows, piece.keys] += parts[1]
            dv[piece.rows, piece.keys] += parts[2]
        return dq, dk.to(k.dtype), dv.to(v.dtype), d_sinks, None


def _taken(
    piece: _Piece, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, ...]:
    """The piece's part of q, k and v, (rows, heads, positions, head_dim), in `dtype`."""
    rows, queries, keys = piece.rows, piece.queries, piece.keys
    parts = q[rows, queries], k[rows, keys], v[rows, keys]
    return tuple(part.to(dtype).transpose(1, 2) for part in parts)
