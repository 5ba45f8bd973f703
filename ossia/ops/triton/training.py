"""The training backend for a GPU: kernels that have a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops.autocast import autocast_dtype
from ossia.ops.backend import Where
from ossia.ops.low_rank import LowRank
from ossia.ops.paged import LayerKV
from ossia.ops.rounded import Rounded
from ossia.ops.training import Training
from ossia.ops.triton import frozen, training_attention, training_experts
from ossia.ops.triton.launch import DTYPES, launches_on
from ossia.ops.values import AttentionSpec, ExpertWeights, RopeTable, Routing
from ossia.ops.weight import Weight


class TritonTraining(Training):
    """As Training, on a GPU. What has no kernel is computed by the definition."""

    name = "triton training"

    def embed(self, ids: Tensor, table: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """As Backend.embed, in float32 at least: a frozen table stays as it was stored."""
        out = F.embedding(ids, table)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        return out if residual is None else residual + out

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.linear; an updated matrix keeps x as autocast rounds it."""
        if isinstance(weight, LowRank):
            x = x.to(autocast_dtype(x))
        return super().linear(x, weight, bias, residual=residual, dtype=dtype)

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.linears; x is rounded once, and so kept once."""
        if any(isinstance(weight, LowRank) for weight in weights):
            x = x.to(autocast_dtype(x))
        return super().linears(x, weights, biases)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """As Training.attention, also with dropout in memory that is linear in the length."""
        whole = not isinstance(where, LayerKV) and q.shape[1] == k.shape[1] and q.numel() > 0
        runs = launches_on(v.device) and training_attention.supports(q.shape[-1], v.dtype)
        if not whole or not runs:
            return super().attention(q, k, v, spec, where, rope)
        assert not isinstance(where, LayerKV)
        if rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        return training_attention.attend(q.to(v.dtype), k.to(v.dtype), v, spec, where)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """As Backend.rms_norm; torch has a kernel for one of its forms."""
        if round_before_weight:
            return super().rms_norm(x, weight, eps, round_before_weight=True)
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe, without waiting for the device if the experts are dense, rounded from
        dense ones, or frozen, with or without low-rank updates.
        """
        narrow = autocast_dtype(x)
        if not x.numel() or not launches_on(x.device) or narrow not in DTYPES:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        if (stack := _dense(experts)) is not None:
            out = training_experts.mixture(x, routing, stack, experts.activation, narrow, residual)
        elif (layer := frozen.Layer.of(experts)) is not None:
            out = frozen.mixture(x, routing, layer, narrow, residual)
        else:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        return out if dtype is None else out.to(dtype)


def _dense(experts: ExpertWeights) -> training_experts.Stack | None:
    """The experts as dense matrices with a gradient; None for those of another kind."""
    matrices = []
    for weight in (experts.gate_up, experts.down):
        plain = weight.weight if isinstance(weight, Rounded) else weight
        if not isinstance(plain, Tensor):
            return None
        matrices.append(plain if plain is weight else training_experts.rounded(plain))
    gate_up, down = matrices
    return training_experts.Stack(gate_up, experts.gate_up_bias, down, experts.down_bias)
