"""The experts of a layer as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, Router
from ossia.ops import _native
from ossia.ops.cpu.linear import Dense
from ossia.ops.cpu.native import is_native, machine, wants_gradient
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import Weight


class Experts(Dense):
    """Native routing and experts."""

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route."""
        tokens, experts = logits.shape
        if not tokens or not 0 < chosen <= experts or not is_native(logits):
            return super().route(logits, chosen, router)
        ids = torch.empty(tokens, chosen, dtype=torch.int64)
        weights = torch.empty(tokens, chosen, dtype=torch.float32)
        softmax_first = router is not Router.TOP_K_THEN_SOFTMAX
        renormalize = router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED
        machine().route(logits.contiguous(), ids, weights, softmax_first, renormalize)
        return Routing(ids, weights)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe."""
        gate_up, down = experts.gate_up, experts.down
        if (
            not x.numel()
            or dtype not in (None, x.dtype, torch.float32)
            or not is_native(x, experts.gate_up_bias, experts.down_bias, residual)
            or not _is_native_stack(x, gate_up)
            or not _is_native_stack(x, down)
            or type(gate_up) is not type(down)
            or wants_gradient(routing.weights)
        ):
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        x, ids = x.contiguous(), routing.experts.long().contiguous()
        weights = routing.weights.float().contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x, dtype=dtype or x.dtype)
        rounds = isinstance(gate_up, MXFP4) and self.rounds()
        machine().moe(x, ids, weights, _experts(experts), out, residual, rounds)
        return out


def _experts(weights: ExpertWeights) -> _native.Experts:
    gate_up = _stack(weights.gate_up, weights.gate_up_bias)
    down = _stack(weights.down, weights.down_bias)
    if isinstance(weights.activation, ClampedSwiGLU):
        clamp = weights.activation
        return _native.Experts(gate_up, down, True, clamp.limit, clamp.alpha)
    return _native.Experts(gate_up, down)


def _stack(weight: Weight, bias: Tensor | None) -> _native.Stack:
    bias = None if bias is None else bias.contiguous()
    if isinstance(weight, MXFP4):
        return _native.Stack(weight.blocks.contiguous(), bias, weight.scales.contiguous())
    assert isinstance(weight, Tensor)
    return _native.Stack(weight, bias)


def _is_native_stack(x: Tensor, weight: Weight) -> bool:
    if isinstance(weight, MXFP4):
        return weight.blocks.is_cpu
    return isinstance(weight, Tensor) and is_native(x, weight) and 1 in weight.stride()[1:]
