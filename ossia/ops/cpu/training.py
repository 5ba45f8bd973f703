"""The training backend for the CPU: native passes between the products, and native products in
bfloat16, which are about twice as fast as torch's where there is no matrix unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.cpu import frozen, gradients
from ossia.ops.cpu.native import DTYPES
from ossia.ops.mixture import Factors, Groups, Mixture, autocast_dtype, mixture, takes
from ossia.ops.rounded import Rounded, round_trip
from ossia.ops.training import Training
from ossia.ops.values import ExpertWeights, Norm, RopeTable, Routing
from ossia.ops.weight import Weight


class NativeTraining(Training):
    """As Training. Sums, norms and activations are computed in float32; under autocast only what
    lies between operations is rounded to bfloat16, and the residual stream is not.
    """

    name = "native training"

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.linear; in float32 torch's products are the fastest."""
        dense = isinstance(weight, Tensor) and weight.dtype is torch.float32
        if not dense or not _usable(x) or autocast_dtype(x) is not gradients.NARROW:
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        assert isinstance(weight, Tensor)
        if residual is not None and residual.dtype in DTYPES:
            out = gradients.linear(x, weight, bias, residual, residual.dtype)
        else:
            out = gradients.linear(x, weight, bias, None, gradients.NARROW)
            out = out if residual is None else residual + out
        return out if dtype is None else out.to(dtype)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As Backend.norm; under autocast in its dtype, which the products that follow take."""
        dtype = autocast_dtype(x)
        if not _usable(x, dtype) or norm.weight.dtype is not torch.float32:
            return super().norm(x, norm)
        return gradients.normalized(x, norm, dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """As Backend.gelu."""
        return gradients.gelu(x) if _usable(x) else super().gelu(x)

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        """As Backend.gated."""
        if not _usable(gate) or (gate.shape, gate.dtype) != (up.shape, up.dtype):
            return super().gated(gate, up, activation)
        return gradients.gated(gate, up, activation)

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """As Training.attention_dtype: torch's kernel is faster in float32 than in bfloat16, except
        on a matrix unit.
        """
        narrow = dtype is gradients.NARROW and not torch.cpu._is_amx_tile_supported()
        return torch.float32 if narrow else dtype

    def rotate(self, x: Tensor, rope: RopeTable) -> Tensor:
        """As Backend.rotate."""
        return gradients.rotate(x, rope) if _usable(x) else super().rotate(x, rope)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe, with products grouped by expert and their gradients."""
        narrow = autocast_dtype(x)
        first = _Trained.of(experts.gate_up, experts.gate_up_bias, narrow)
        last = _Trained.of(experts.down, experts.down_bias, narrow)
        usable = _usable(x) and narrow in DTYPES and takes(x, experts)
        if first is None or last is None or not usable:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        out = mixture(x, routing.weights, Mixture.of(routing, experts, first, last))
        out = out.to(x.dtype if dtype is None else dtype)
        return out if residual is None else residual + out


def _usable(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the native operations take x, with results or other operands of `dtype`, and nothing
    compiles them.
    """
    if not x.is_cpu or x.dtype not in DTYPES or not x.numel() or torch.compiler.is_compiling():
        return False
    return (
        dtype is None or dtype is x.dtype or (x.dtype, dtype) == (torch.float32, gradients.NARROW)
    )


@dataclass(frozen=True)
class _Trained:
    """Products with dense matrices (experts, rows, cols) in float32 and their biases, which are
    learned; a `mixture.Product`. It keeps the matrices in bfloat16 if that is the dtype.
    """

    dtype: torch.dtype
    factors: Factors

    @staticmethod
    def of(weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> _Trained | None:
        """None for another kind of weight, except one that is rounded from such a one."""
        plain = weight.weight if isinstance(weight, Rounded) else weight
        if not isinstance(plain, Tensor) or plain.dtype is not torch.float32:
            return None
        return _Trained(dtype, (plain if plain is weight else round_trip(plain), bias))

    def product(self, x: Tensor, groups: Groups, factors: Factors) -> tuple[Tensor, Tensor | None]:
        """See mixture.Product."""
        weight, bias = factors
        assert weight is not None
        if self.dtype is gradients.NARROW:
            kept = weight.to(self.dtype)
            stack = frozen.stack_of(kept, None if bias is None else bias.to(self.dtype))
            assert stack is not None
            return frozen.grouped(x, groups.counts, stack), kept
        out = x.new_empty(len(x), weight.shape[1])
        for rows, expert in groups:
            if bias is None:
                torch.mm(x[rows], weight[expert].T, out=out[rows])
            else:
                torch.addmm(bias[expert], x[rows], weight[expert].T, out=out[rows])
        return out, None

    def gradient(
        self, slope: Tensor, groups: Groups, factors: Factors, kept: Tensor | None
    ) -> Tensor:
        """See mixture.Product."""
        if kept is not None:
            stack = frozen.stack_of(kept)
            assert stack is not None
            return frozen.grouped(slope, groups.counts, stack, turned=True)
        weight = factors[0]
        assert weight is not None
        out = slope.new_empty(len(slope), weight.shape[2])
        for rows, expert in groups:
            torch.mm(slope[rows], weight[expert], out=out[rows])
        return out

    def learned(
        self, x: Tensor, kept: Tensor | None, slope: Tensor, groups: Groups, factors: Factors
    ) -> Factors:
        """See mixture.Product."""
        weight, bias = factors
        assert weight is not None
        d_weight = torch.empty_like(weight)
        d_bias = None if bias is None else torch.zeros_like(bias)
        if kept is not None:
            frozen.weight_gradient(slope, x, groups.counts, d_weight, d_bias)
            return d_weight, d_bias
        for expert in (groups.counts == 0).nonzero().flatten().tolist():
            d_weight[expert].zero_()
        for rows, expert in groups:
            torch.mm(slope[rows].T, x[rows], out=d_weight[expert])
            if d_bias is not None:
                torch.sum(slope[rows], 0, out=d_bias[expert])
        return d_weight, d_bias
