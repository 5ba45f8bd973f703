"""A backend's operations with loose arguments, as tests that vary each of them like it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, Router, SwiGLU
from ossia.ops import (
    REFERENCE,
    AttentionSpec,
    Backend,
    Documents,
    ExpertWeights,
    RopeTable,
    Routing,
)
from ossia.ops.paged import LayerKV
from ossia.ops.weight import Weight

Pair = tuple[Tensor, Tensor]


class Flat:
    """One backend; every method is the operation of that name, or of the older one."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.linear, self.linears = backend.linear, backend.linears
        self.rms_norm, self.layer_norm = backend.rms_norm, backend.layer_norm
        self.gelu = backend.gelu

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.backend.rotate(x, RopeTable(cos, sin))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.backend.gated(gate, up, SwiGLU())

    def clamped_swiglu(self, gate: Tensor, up: Tensor, *, limit: float, alpha: float) -> Tensor:
        return self.backend.gated(gate, up, ClampedSwiGLU(limit, alpha))

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        documents: Tensor | None = None,
        **spec,
    ) -> Tensor:
        where = None if documents is None else Documents(documents)
        return self.backend.attention(q, k, v, AttentionSpec(**spec), where)

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: LayerKV,
        *,
        sinks: Tensor | None = None,
        rotation: Pair | None = None,
    ) -> Tensor:
        """The window is that of the pages' kind."""
        spec = AttentionSpec(kv.tables.window, sinks)
        rope = None if rotation is None else RopeTable(*rotation)
        return self.backend.attention(q, k, v, spec, kv, rope)

    def route(
        self, logits: Tensor, chosen: int, *, softmax_first: bool, renormalize: bool
    ) -> Routing:
        router = Router.TOP_K_THEN_SOFTMAX
        if softmax_first:
            router = Router.SOFTMAX_THEN_TOP_K
            router = Router.SOFTMAX_THEN_TOP_K_RENORMALIZED if renormalize else router
        return self.backend.route(logits, chosen, router)

    def moe(
        self,
        x: Tensor,
        experts: Tensor,
        weights: Tensor,
        *matrices: Weight | None,
        clamp: tuple[float, float] | None = None,
        residual: Tensor | None = None,
        wide: bool = False,
    ) -> Tensor:
        """matrices: gate_up, its bias, down, its bias; wide: the sum in float32."""
        stack = expert_weights(matrices, clamp)
        dtype = torch.promote_types(x.dtype, torch.float32) if wide else None
        routing = Routing(experts, weights)
        return self.backend.moe(x, routing, stack, residual=residual, dtype=dtype)


def expert_weights(
    matrices: Sequence[Weight | None], clamp: tuple[float, float] | None = None
) -> ExpertWeights:
    gate_up, gate_up_bias, down, down_bias = matrices
    activation = SwiGLU() if clamp is None else ClampedSwiGLU(*clamp)
    return ExpertWeights(gate_up, gate_up_bias, down, down_bias, activation)  # type: ignore[arg-type]


reference = Flat(REFERENCE)
