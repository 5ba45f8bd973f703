"""The training backend for the CPU: native passes between the products, and native products in
bfloat16, which are about twice as fast as torch's where there is no matrix unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.autocast import autocast_dtype
from ossia.ops.cpu import frozen, gradients
from ossia.ops.cpu.native import DTYPES
from ossia.ops.mixture import Factors, Groups, Kept, Mixture, mixture, takes
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
        usable = _usable(x) and narrow in DTYPES and takes(x, experts)
        first, last = _learned(experts.gate_up), _learned(experts.down)
        if not usable or first is None or last is None:
            return super().moe(x, routing, experts, residual=residual, dtype=dtype)
        first = round_trip(first) if isinstance(experts.gate_up, Rounded) else first
        last = round_trip(last) if isinstance(experts.down, Rounded) else last
        job = Mixture.of(routing, experts, _Trained(narrow), _Trained(narrow))
        factors = (first, experts.gate_up_bias), (last, experts.down_bias)
        out = mixture(x, routing.weights, job, *factors)
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


def _learned(weight: Weight) -> Tensor | None:
    """The weight as `_Trained` takes it, but not rounded; None if it is of another kind."""
    plain = weight.weight if isinstance(weight, Rounded) else weight
    return plain if isinstance(plain, Tensor) and plain.dtype is torch.float32 else None


@dataclass(frozen=True)
class _Trained:
    """Products with dense matrices (experts, rows, cols) in float32 and their biases, which are
    learned; a `mixture.Product`. It keeps the matrices in the dtype of the products.
    """

    dtype: torch.dtype

    def product(self, x: Tensor, groups: Groups, factors: Factors) -> tuple[Tensor, Kept]:
        """See mixture.Product."""
        weight, bias = factors
        assert weight is not None
        if self.dtype is gradients.NARROW:
            weight = weight.to(self.dtype)
            stack = frozen.stack_of(weight, None if bias is None else bias.to(self.dtype))
            assert stack is not None
            return frozen.grouped(x, groups.counts, stack), (weight, bias)
        out = x.new_empty(len(x), weight.shape[1])
        for rows, expert in groups:
            if bias is None:
                torch.mm(x[rows], weight[expert].T, out=out[rows])
            else:
                torch.addmm(bias[expert], x[rows], weight[expert].T, out=out[rows])
        return out, (weight, bias)

    def gradient(self, slope: Tensor, groups: Groups, kept: Kept) -> Tensor:
        """See mixture.Product."""
        weight, _ = kept
        assert weight is not None
        if self.dtype is gradients.NARROW:
            stack = frozen.stack_of(weight)
            assert stack is not None
            return frozen.grouped(slope, groups.counts, stack, turned=True)
        out = slope.new_empty(len(slope), weight.shape[2])
        for rows, expert in groups:
            torch.mm(slope[rows], weight[expert], out=out[rows])
        return out

    def learned(self, x: Tensor, slope: Tensor, groups: Groups, kept: Kept) -> Factors:
        """See mixture.Product."""
        weight, bias = kept
        assert weight is not None
        d_weight = torch.empty_like(weight, dtype=torch.float32)
        d_bias = None if bias is None else torch.zeros_like(bias)
        if self.dtype is gradients.NARROW:
            frozen.weight_gradient(slope, x, groups.counts, d_weight, d_bias)
            return d_weight, d_bias
        for expert in (groups.counts == 0).nonzero().flatten().tolist():
            d_weight[expert].zero_()
        for rows, expert in groups:
            torch.mm(slope[rows].T, x[rows], out=d_weight[expert])
            if d_bias is not None:
                torch.sum(slope[rows], 0, out=d_bias[expert])
        return d_weight, d_bias
