"""The experts of a layer as one operation."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, Router
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import TYPES, address, is_native, machine, wants_gradient
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.values import ExpertWeights, Routing

# Beyond these torch, which uses all threads, is the faster one.
_ROUTE_TOKENS = 64


class Experts(Backend):
    """Native routing and experts."""

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """As Backend.route."""
        tokens, experts = logits.shape
        if not 0 < tokens <= _ROUTE_TOKENS or not 0 < chosen <= experts or not is_native(logits):
            return super().route(logits, chosen, router)
        logits = logits.contiguous()
        ids = torch.empty(tokens, chosen, dtype=torch.int64)
        weights = torch.empty(tokens, chosen, dtype=torch.float32)
        machine().route(
            logits.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            TYPES[logits.dtype],
            tokens,
            experts,
            chosen,
            router is not Router.TOP_K_THEN_SOFTMAX,
            router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED,
        )
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
        gate_up, gate_up_bias = experts.gate_up, experts.gate_up_bias
        down, down_bias = experts.down, experts.down_bias
        dense = [weight for weight in (gate_up, down) if isinstance(weight, Tensor)]
        if (
            not isinstance(gate_up, Tensor | MXFP4)
            or not isinstance(down, Tensor | MXFP4)
            or len(dense) == 1
            or not x.numel()
            or dtype not in (None, x.dtype, torch.float32)
            or not is_native(x, gate_up_bias, down_bias, residual, *dense)
            or wants_gradient(routing.weights)
            or not all(1 in weight.stride()[1:] for weight in dense)
        ):
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        count, hidden, inter = down.shape
        tokens, chosen = routing.experts.shape
        assert gate_up.shape == (count, 2 * inter, hidden)
        assert x.shape == (tokens, hidden)
        assert routing.weights.shape == routing.experts.shape
        assert gate_up_bias is None or gate_up_bias.shape == (count, 2 * inter)
        assert down_bias is None or down_bias.shape == (count, hidden)
        assert residual is None or residual.shape == x.shape
        # Names keep what may have been copied alive for the length of the call.
        x, ids = x.contiguous(), routing.experts.long().contiguous()
        weights = routing.weights.float().contiguous()
        gate_up, down = _kept(gate_up), _kept(down)
        bias = None if gate_up_bias is None else gate_up_bias.contiguous()
        last_bias = None if down_bias is None else down_bias.contiguous()
        residual = None if residual is None else residual.contiguous()
        clamp = experts.activation if isinstance(experts.activation, ClampedSwiGLU) else None
        limit, alpha = (clamp.limit, clamp.alpha) if clamp else (0.0, 0.0)
        out = torch.empty_like(x, dtype=dtype or x.dtype)
        machine().moe(
            *_layout(gate_up),
            address(bias),
            *_layout(down),
            address(last_bias),
            count,
            chosen,
            hidden,
            inter,
            clamp is not None,
            limit,
            alpha,
            x.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            address(residual),
            out.data_ptr(),
            TYPES[x.dtype],
            TYPES[out.dtype],
            tokens,
        )
        return out


def _kept(weight: Tensor | MXFP4) -> Tensor | MXFP4:
    """The stack with packed matrices one after another."""
    if isinstance(weight, MXFP4):
        return MXFP4(weight.blocks.contiguous(), weight.scales.contiguous())
    return weight


def _layout(weight: Tensor | MXFP4) -> tuple[int, int, int, int, bool]:
    """Where matrices and scales lie, and of dense ones: elements from matrix to matrix, from row to
    row, or from column to column if the last is true, as in gpt-oss's bfloat16 checkpoints.
    """
    if isinstance(weight, MXFP4):
        return weight.blocks.data_ptr(), weight.scales.data_ptr(), 0, 0, False
    each, row, column = weight.stride()
    transposed = column != 1
    return weight.data_ptr(), 0, each, column if transposed else row, transposed
