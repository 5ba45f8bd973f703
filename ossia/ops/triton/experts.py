"""The experts of a layer as one operation: packed or dense, for one token or thousands."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.triton import expert_matrices, expert_router, expert_vectors
from ossia.ops.triton.launch import launches_on, runs
from ossia.ops.triton.paired import PairedMXFP4, pair
from ossia.ops.triton.routing import Routes
from ossia.ops.values import ExpertWeights, Norm, RouterWeights, Routing
from ossia.ops.weight import Weight

# Tokens up to which each one's products are faster than a matrix unit that is mostly empty.
_VECTORS = 8

_log = logging.getLogger(__name__)


class Experts(Routes):
    """Routing, and experts packed in MXFP4 or dense."""

    def place(self, name: str, weight: Weight) -> Weight:
        """As Backend.place: stacks of packed experts get the layout of the kernels."""
        weight = super().place(name, weight)
        if not isinstance(weight, MXFP4) or weight.scales.ndim != 3:
            return weight
        if not launches_on(weight.scales.device):
            return weight
        paired = pair(weight)
        if paired is None:
            _log.warning(
                "%s: scales of MXFP4 that no model should have (NaN, above 2, or 0 with numbers): "
                "plain PyTorch computes these experts, slowly",
                name,
            )
            return weight
        return paired

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe; two runs give the same bits."""
        if not x.numel() or not _suits(x, routing, experts, residual):
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        routing = Routing(routing.experts.long().contiguous(), routing.weights.float().contiguous())
        result = x.dtype if dtype is None else dtype
        fused = residual is not None and type(self).reduce is Backend.reduce
        added = residual.contiguous() if residual is not None and fused else None
        wide = result if added is None else torch.promote_types(result, added.dtype)
        out = torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format)
        few = isinstance(experts.gate_up, PairedMXFP4) and len(x) <= _VECTORS
        few = few and expert_vectors.suits(x, routing.experts.shape[1], experts)
        form = expert_vectors if few else expert_matrices
        form.moe(x.contiguous(), routing, experts, added, out)
        return out if residual is None or fused else residual + self.reduce(out)

    def normed_moe(
        self,
        x: Tensor,
        norm: Norm,
        router: RouterWeights,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        """As Backend.normed_moe; for a few tokens norm, router and packing are one launch, in which
        x is not rounded.
        """
        gate_up, down = experts.gate_up, experts.down
        biases = experts.gate_up_bias, experts.down_bias
        if not (
            0 < len(x) <= _VECTORS
            and isinstance(gate_up, PairedMXFP4)
            and isinstance(down, PairedMXFP4)
            and (residual is None or residual.dtype == x.dtype)
            and type(self).reduce is Backend.reduce
            and expert_vectors.suits(x, router.chosen, experts)
            and expert_router.suits(x, norm, router)
            and runs(x, gate_up.pairs, down.pairs, *biases, residual)
        ):
            return super().normed_moe(x, norm, router, experts, residual=residual)
        routing, packed = expert_router.route(x, norm, router, gate_up.depth)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        added = None if residual is None else residual.contiguous()
        expert_vectors.packed_moe(packed, routing, experts, added, out)
        return out


def _suits(x: Tensor, routing: Routing, experts: ExpertWeights, residual: Tensor | None) -> bool:
    """Whether kernels compute these experts: both stacks packed, or dense and of x's type."""
    gate_up, down = experts.gate_up, experts.down
    others = (routing.weights, experts.gate_up_bias, experts.down_bias, residual)
    if isinstance(gate_up, PairedMXFP4) and isinstance(down, PairedMXFP4):
        return runs(x, gate_up.pairs, down.pairs, *others)
    if not isinstance(gate_up, Tensor) or not isinstance(down, Tensor):
        return False
    return gate_up.dtype == down.dtype == x.dtype and runs(x, gate_up, down, *others)
