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
        pieces = [*_pieces(q.shape[1], spec.window, documents, q)]
        return _Attention.apply(q, k, v, spec.sinks, pieces)

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route."""
        if self.on_route is not None:
            self.on_route(logits, chosen)
        return super().route(logits, chosen, router)


def for_device(device: torch.device) -> Training:
    """The training backend for the CPU or a GPU."""
    if device.type != "cuda":
        return Training()
    from ossia.ops.triton.training import TritonTraining

    return TritonTraining()


@dataclass(frozen=True)
class _Piece:
    """Queries and the keys that some of them see: the same positions, or a band of `window`."""

    rows: slice
    queries: slice
    keys: slice
    mask: Tensor | None  # added to the scores; None is plain causal


def _pieces(
    length: int, window: int | None, documents: Tensor | None, like: Tensor
) -> Iterator[_Piece]:
    """The pieces that make up all of attention: one per document; a document longer than the
    window is split into blocks.
    """
    for rows, start, stop in _documents(length, documents):
        first = stop if window is None else min(stop, start + window)
        yield _Piece(rows, slice(start, first), slice(start, first), None)
        if window is not None and first < stop:
            step = max(window, _SMALLEST_BLOCK)
            mask = _band(min(step, stop - first), window, like)
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


def _band(queries: int, window: int, like: Tensor) -> Tensor:
    """(queries, queries + window - 1): query i sees the `window` keys from key i on."""
    distance = torch.arange(queries + window - 1) - torch.arange(queries)[:, None]
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))


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
        pieces: list[_Piece],
    ) -> Tensor:
        batch, length, heads, _ = q.shape
        out = torch.empty_like(q)
        wide = torch.promote_types(q.dtype, torch.float32)
        total = torch.empty(batch, heads, length, dtype=wide)
        ctx.pieces = pieces
        for piece in pieces:
            queries, keys, values = _taken(piece, q, k, v)
            part, lse = _flash(
                queries, keys, values, is_causal=piece.mask is None, attn_mask=piece.mask
            )
            out[piece.rows, piece.queries] = part.transpose(1, 2)
            total[piece.rows, :, piece.queries] = lse
        if sinks is not None:
            joined = torch.logaddexp(total, sinks.to(wide)[:, None])
            out.mul_((total - joined).exp_().transpose(1, 2)[..., None])
            total = joined
        ctx.save_for_backward(q, k, v, sinks, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, total = ctx.saved_tensors
        gradient = gradient.contiguous()
        # Only blocks of a sliding layer share keys, so only dk and dv are sums.
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for piece in ctx.pieces:
            queries, keys, values = _taken(piece, q, k, v)
            own = (gradient[piece.rows, piece.queries], out[piece.rows, piece.queries])
            parts = _flash_backward(
                own[0].transpose(1, 2),
                queries,
                keys,
                values,
                own[1].transpose(1, 2),
                total[piece.rows, :, piece.queries],
                0.0,
                piece.mask is None,
                attn_mask=piece.mask,
            )
            dq[piece.rows, piece.queries] = parts[0].transpose(1, 2)
            dk[piece.rows, piece.keys] += parts[1].transpose(1, 2)
            dv[piece.rows, piece.keys] += parts[2].transpose(1, 2)
        if sinks is None or not ctx.needs_input_grad[3]:
            return dq, dk, dv, None, None
        share = (sinks.to(total.dtype)[:, None] - total).exp_().transpose(1, 2)
        taken = (gradient * out).sum(-1, dtype=total.dtype)  # (batch, length, heads)
        return dq, dk, dv, -(share * taken).sum((0, 1)).to(sinks.dtype), None


def _taken(piece: _Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The piece's part of q, k and v, (rows, heads, positions, head_dim)."""
    rows, queries, keys = piece.rows, piece.queries, piece.keys
    return tuple(x.transpose(1, 2) for x in (q[rows, queries], k[rows, keys], v[rows, keys]))
