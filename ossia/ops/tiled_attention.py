"""Causal attention over whole rows whose memory is linear in the length, forwards and backwards,
on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Torch's tiled kernel (FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691) and its
# gradient. They are called directly because the public function hides the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_SMALLEST_BLOCK = (
    32  # queries of a sliding layer; smaller blocks spend more on calls than on products
)


@dataclass(frozen=True)
class Seen:
    """What a query sees up to itself: of its own document, by the numbers (batch, length) in
    `documents`, and of that the last `window` keys; all where these are None.
    """

    documents: Tensor | None
    window: int | None


def attend(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, seen: Seen, dtype: torch.dtype
) -> Tensor:
    """Attention of q (batch, length, heads, head_dim) over k and v (batch, length, kv_heads,
    head_dim) of one dtype, as `causal_attention`, computed in `dtype`.
    """
    if torch.compiler.is_compiling():
        return _as_one(q, k, v, sinks, seen.documents, seen.window, dtype)[0]
    return _Attention.apply(q, k, v, sinks, _Plan.of(q, seen, dtype))


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

    @staticmethod
    def of(q: Tensor, seen: Seen, dtype: torch.dtype) -> _Plan:
        return _Plan([*_pieces(q.shape[1], seen, dtype)], dtype)


def _pieces(length: int, seen: Seen, dtype: torch.dtype) -> Iterator[_Piece]:
    """The pieces that make up all of attention: one per document; a document longer than the
    window is split into blocks.
    """
    window = seen.window
    for rows, start, stop in _documents(length, seen.documents):
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


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, plan: _Plan
) -> tuple[Tensor, Tensor]:
    """Attention piece by piece, of q's dtype, and the log-sum-exp (batch, heads, length); sinks
    enter by their share of each softmax.

    Let s be the sink's logit and L = logaddexp(lse, s). Every probability is exp(score - L), so the
    output is that without sinks times exp(lse - L), and the kernel's gradient is exact if it is
    given that output and L. The sink's column has no value, so its gradient is only the softmax's:
    -exp(s - L) * (gradient . output).
    """
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
    return out.to(q.dtype), total


def _backward(
    gradient: Tensor, inputs: Sequence[Tensor], out: Tensor, total: Tensor, plan: _Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v by that of `_forward`'s output."""
    (q, k, v), pieces, dtype = inputs, plan.pieces, plan.dtype

    def parts_of(piece: _Piece) -> list[Tensor]:
        tensors = _taken(piece, dtype, q, k, v)
        slope, result = (
            x[piece.rows, piece.queries].to(dtype).transpose(1, 2) for x in (gradient, out)
        )
        lse, causal = total[piece.rows, :, piece.queries], piece.mask is None
        parts = _flash_backward(slope, *tensors, result, lse, 0.0, causal, attn_mask=piece.mask)
        return [part.transpose(1, 2) for part in parts]

    if len(pieces) == 1:
        dq, dk, dv = (part.to(q.dtype) for part in parts_of(pieces[0]))
        return dq, dk, dv
    # Only blocks of a sliding layer share keys, so only dk and dv are sums.
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    for piece in pieces:
        parts = parts_of(piece)
        dq[piece.rows, piece.queries] = parts[0]
        dk[piece.rows, piece.keys] += parts[1]
        dv[piece.rows, piece.keys] += parts[2]
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _of_sinks(gradient: Tensor, sinks: Tensor, out: Tensor, total: Tensor) -> Tensor:
    """The gradient of the sinks; see `_forward`."""
    share = (sinks.to(total.dtype)[:, None] - total).exp_().transpose(1, 2)
    taken = (gradient * out).sum(-1, dtype=total.dtype)  # (batch, length, heads)
    return -(share * taken).sum((0, 1)).to(sinks.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        out, total = _forward(q, k, v, sinks, plan)
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, sinks, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, total = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            d_sinks = _of_sinks(gradient, sinks, out, total)
        return *_backward(gradient, (q, k, v), out, total, ctx.plan), d_sinks, None


# In a compiled graph attention is one operation, because where its pieces are depends on data.
@torch.library.custom_op("ossia::tiled_attention", mutates_args=())
def _as_one(  # noqa: PLR0913 (an operation takes no values of other types)
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    documents: Tensor | None,
    window: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    out, total = _forward(q, k, v, sinks, _Plan.of(q, Seen(documents, window), dtype))
    return out.contiguous(), total.contiguous()


@_as_one.register_fake
def _(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    wide = torch.promote_types(others[-1], torch.float32)
    return q.new_empty(q.shape), q.new_empty(batch, heads, length, dtype=wide)


@torch.library.custom_op("ossia::tiled_attention_backward", mutates_args=())
def _as_one_backward(  # noqa: PLR0913
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    total: Tensor,
    documents: Tensor | None,
    window: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _Plan.of(q, Seen(documents, window), dtype)
    dq, dk, dv = _backward(gradient.contiguous(), (q, k, v), out, total, plan)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@_as_one_backward.register_fake
def _(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.dtype = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, sinks, documents, *outputs = ctx.saved_tensors
    found = _as_one_backward(gradient, q, k, v, *outputs, documents, ctx.window, ctx.dtype)
    d_sinks = None if sinks is None else _of_sinks(gradient, sinks, *outputs)
    return *found, d_sinks, None, None, None


_as_one.register_autograd(_gradients, setup_context=_keep)


def _taken(
    piece: _Piece, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, ...]:
    """The piece's part of q, k and v, (rows, heads, positions, head_dim), in `dtype`."""
    rows, queries, keys = piece.rows, piece.queries, piece.keys
    parts = q[rows, queries], k[rows, keys], v[rows, keys]
    return tuple(part.to(dtype).transpose(1, 2) for part in parts)
