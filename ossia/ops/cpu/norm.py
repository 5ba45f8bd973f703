"""Norms and rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.cpu.native import TYPES, is_native, machine
from ossia.ops.values import RopeTable


class Norms(Backend):
    """Native norms and rotation."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """As Backend.rms_norm."""
        if not x.numel() or not is_native(x, weight):
            return super().rms_norm(x, weight, eps, round_before_weight=round_before_weight)
        x, weight = x.contiguous(), weight.contiguous()
        size = weight.numel()
        assert weight.shape == x.shape[-1:]
        out = torch.empty_like(x)
        machine().rms_norm(
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            TYPES[x.dtype],
            x.numel() // size,
            size,
            eps,
            round_before_weight,
        )
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """As Backend.layer_norm."""
        if not x.numel() or not is_native(x, weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        size = weight.numel()
        assert weight.shape == bias.shape == x.shape[-1:]
        out = torch.empty_like(x)
        machine().layer_norm(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            TYPES[x.dtype],
            x.numel() // size,
            size,
            eps,
        )
        return out

    def rotate(self, x: Tensor, rope: RopeTable) -> Tensor:
        """As Backend.rotate; natively for packed tokens."""
        cos, sin = rope
        if x.dim() != 3 or not x.numel() or not is_native(x) or cos.dtype is not torch.float32:
            return super().rotate(x, rope)
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        tokens, heads, head_dim = x.shape
        assert cos.shape == sin.shape == (tokens, head_dim // 2)
        assert head_dim % 2 == 0
        assert sin.dtype is torch.float32
        out = torch.empty_like(x)
        machine().rotate(
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            TYPES[x.dtype],
            tokens,
            heads,
            head_dim,
        )
        return out
