"""Native operations of training, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops._native import Matrix
from ossia.ops.cpu.frozen import weight_gradient
from ossia.ops.cpu.native import training_machine
from ossia.ops.values import Norm, RopeTable

NARROW = torch.bfloat16


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`Backend.linear` in bfloat16 of float32 weights, summed in float32; in `dtype`, which is that
    of the residual.
    """
    return _Linear.apply(x, weight, bias, residual, dtype)


def normalized(x: Tensor, norm: Norm, dtype: torch.dtype) -> Tensor:
    """`Backend.norm` with float32 weights, in `dtype`: x's own, or bfloat16 of float32."""
    return _Norm.apply(x.contiguous(), norm.weight, norm.bias, norm, dtype)


def gelu(x: Tensor) -> Tensor:
    """As Backend.gelu."""
    return _GELU.apply(x.contiguous())


def gated(gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
    """As Backend.gated."""
    return _Gated.apply(gate.contiguous(), up.contiguous(), activation)


def rotate(x: Tensor, rope: RopeTable) -> Tensor:
    """`Backend.rotate` of x (..., tokens, heads, head_dim)."""
    pairs = (*x.shape[:-2], x.shape[-1] // 2)
    cos, sin = (part.expand(pairs).reshape(-1, pairs[-1]) for part in rope)
    return _Rotate.apply(x, cos.contiguous(), sin.contiguous())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        rows, narrow = x.flatten(0, -2).to(NARROW).contiguous(), weight.to(NARROW)
        out = torch.empty(*x.shape[:-1], len(weight), dtype=dtype)
        matrix = Matrix(narrow, None if bias is None else bias.to(dtype))
        added = None if residual is None else residual.contiguous().flatten(0, -2)
        training_machine().linear(rows, matrix, out.view(-1, len(weight)), added, False)
        ctx.save_for_backward(rows, narrow)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, narrow = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        slope = gradient.flatten(0, -2).to(NARROW).contiguous()
        if ctx.needs_input_grad[0]:
            d_x = torch.empty(ctx.shape, dtype=ctx.dtype)
            out = d_x.view(-1, ctx.shape[-1])
            training_machine().linear(slope, Matrix(narrow.T), out, None, False)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_weight = torch.empty(1, *narrow.shape)
            d_bias = torch.empty(1, len(narrow)) if ctx.needs_input_grad[2] else None
            weight_gradient(slope, rows, torch.tensor([len(rows)]), d_weight, d_bias)
            d_weight, d_bias = d_weight[0], None if d_bias is None else d_bias[0]
        return d_x, d_weight, d_bias, gradient if ctx.needs_input_grad[3] else None, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        training_machine().norm(x, weight, bias, out, norm.eps, norm.round_before_weight)
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.biased = norm.eps, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
        d_bias = torch.empty_like(weight) if ctx.biased else None
        gradient = gradient.contiguous()
        training_machine().norm_gradient(x, weight, gradient, d_x, d_weight, d_bias, ctx.eps)
        return d_x, d_weight, d_bias, None, None


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        training_machine().gelu(x, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        training_machine().gelu_gradient(x, gradient.contiguous(), out)
        return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        out = torch.empty_like(gate)
        if isinstance(activation, ClampedSwiGLU):
            training_machine().clamped_swiglu(gate, up, out, activation.limit, activation.alpha)
        else:
            training_machine().swiglu(gate, up, out)
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        kind = ctx.activation
        clamp = (True, kind.limit, kind.alpha) if isinstance(kind, ClampedSwiGLU) else (False, 0, 0)
        gradient = gradient.contiguous()
        training_machine().gated_gradient(gate, up, gradient, d_gate, d_up, *clamp)
        return d_gate, d_up, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    heads = (-1, *x.shape[-2:])
    training_machine().rotate(x.view(heads), cos, sin, out.view(heads))
    return out
