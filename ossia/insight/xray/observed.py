"""Observed: a backend that wraps another, and shows an observer what passes through it.

Every result is the wrapped backend's own, so the model computes what it computes without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, RoPE, Router, SwiGLU
from ossia.ops import (
    REFERENCE,
    AttentionSpec,
    Backend,
    ExpertWeights,
    Norm,
    RopeTable,
    RouterWeights,
    Routing,
)
from ossia.ops.backend import Where
from ossia.ops.int8 import Int8
from ossia.ops.paged import LayerKV, PagedKV
from ossia.ops.sampling import SamplingTable
from ossia.ops.weight import Weight


class Observer(Protocol):
    """What a pass over one text shows, in the order in which it happens. The tensors are the
    model's own and must not be changed.
    """

    def stream(self, index: int, x: Tensor) -> None:
        """The residual stream (tokens, hidden): what layer `index` reads. That of index 0 is the
        embedding; that of the number of layers is what the last norm reads.
        """
        ...

    def halfway(self, layer: int, x: Tensor) -> None:
        """The residual stream (tokens, hidden) between a layer's attention and its feed-forward."""
        ...

    def attention(self, layer: int, q: Tensor, k: Tensor, spec: AttentionSpec) -> None:
        """Queries (tokens, heads, head_dim) and keys (keys, kv_heads, head_dim), float32 and
        rotated. The keys are those that any of the queries sees; the queries are the last of their
        positions.
        """
        ...

    def gated(self, layer: int, gate: Tensor, up: Tensor, activation: ClampedSwiGLU) -> None:
        """The inputs (tokens, inter) of a dense feed-forward's clamped SwiGLU."""
        ...

    def experts(self, layer: int, x: Tensor, routing: Routing, experts: ExpertWeights) -> None:
        """The input (tokens, hidden) of a layer's experts, and the experts of each token."""
        ...


class Observed(Backend):
    """A backend around `inner` for passes over one text: packed over pages, or a row on its own.

    A layer begins with a call of `attention`; what is added to the residual stream first after it
    is attention's output, and what follows is the feed-forward's.
    """

    def __init__(self, inner: Backend, observer: Observer) -> None:
        self.inner, self.observer = inner, observer
        self.name = inner.name
        self._layer, self._attended = -1, False

    def embed(self, ids: Tensor, table: Tensor, *, residual: Tensor | None = None) -> Tensor:
        out = self.inner.embed(ids, table, residual=residual)
        self._layer, self._attended = -1, False
        self.observer.stream(0, _rows(out))
        return out

    def reading(self, where: Where | PagedKV) -> AbstractContextManager[None]:
        return self.inner.reading(where)

    def rope_table(self, positions: Tensor, rope: RoPE, head_dim: int) -> RopeTable:
        return self.inner.rope_table(positions, rope, head_dim)

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        out = self.inner.linear(x, weight, bias, residual=residual, dtype=dtype)
        if residual is not None:
            self._added(out)
        return out

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        return self.inner.linears(x, weights, biases)

    def quantize(self, weight: Tensor) -> Int8:
        return self.inner.quantize(weight)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self.inner.layer_norm(x, weight, bias, eps)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        return self.inner.rms_norm(x, weight, eps, round_before_weight=round_before_weight)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        return self.inner.norm(x, norm)

    def norms(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> tuple[Tensor, ...]:
        return self.inner.norms(xs, norms)

    def normed_linears(
        self, x: Tensor, norm: Norm, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        return self.inner.normed_linears(x, norm, weights, biases)

    def rotate(self, x: Tensor, rope: RopeTable) -> Tensor:
        return self.inner.rotate(x, rope)

    def gelu(self, x: Tensor) -> Tensor:
        return self.inner.gelu(x)

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        if isinstance(activation, ClampedSwiGLU):
            self.observer.gated(self._layer, _rows(gate), _rows(up), activation)
        return self.inner.gated(gate, up, activation)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        out = self.inner.attention(q, k, v, spec, where, rope)
        self._layer, self._attended = self._layer + 1, True
        queries = q.float() if rope is None else REFERENCE.rotate(q.float(), rope)
        if isinstance(where, LayerKV):
            (seen,) = where.tables.seen  # one text
            keys = where.read(seen)[0].float()
        elif where is None and len(q) == 1:
            keys = k.float() if rope is None else REFERENCE.rotate(k.float(), rope)
            queries, keys = queries[0], keys[0]
        else:
            raise ValueError("an observed pass is over one text")
        self.observer.attention(self._layer, queries, keys, spec)
        return out

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        return self.inner.route(logits, chosen, router)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        self.observer.experts(self._layer, x, routing, experts)
        out = self.inner.moe(x, routing, experts, residual=residual, dtype=dtype)
        if residual is not None:
            self._added(out)
        return out

    def normed_moe(
        self,
        x: Tensor,
        norm: Norm,
        router: RouterWeights,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Of its parts, of which `route` and `moe` are observed."""
        return super().normed_moe(x, norm, router, experts, residual=residual)

    def sample(self, logits: Tensor, table: SamplingTable) -> Tensor:
        return self.inner.sample(logits, table)

    def place(self, name: str, weight: Weight) -> Weight:
        return self.inner.place(name, weight)

    def reduce(self, x: Tensor) -> Tensor:
        return self.inner.reduce(x)

    def _added(self, x: Tensor) -> None:
        if self._attended:
            self.observer.halfway(self._layer, _rows(x))
        else:
            self.observer.stream(self._layer + 1, _rows(x))
        self._attended = False


def _rows(x: Tensor) -> Tensor:
    """(tokens, columns), of a row on its own as well."""
    return x.reshape(-1, x.shape[-1])
