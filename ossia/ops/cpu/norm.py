"""Norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.cpu.native import is_native, machine


class Norms(Backend):
    """Native norms."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """As Backend.rms_norm."""
        if not x.numel() or not is_native(x, weight):
            return super().rms_norm(x, weight, eps, round_before_weight=round_before_weight)
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        machine().rms_norm(x, weight, out, eps, round_before_weight)
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """As Backend.layer_norm."""
        if not x.numel() or not is_native(x, weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        out = torch.empty_like(x)
        machine().layer_norm(x, weight, bias, out, eps)
        return out
