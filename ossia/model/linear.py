"""Weights and the operation that takes them, whatever their format."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia.config import ExpertFormat
from ossia.offload.store import StoredExperts
from ossia.ops import Backend
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import BLOCK, MXFP4
from ossia.ops.reference import Weight


class Linear(nn.Module):
    """x (..., cols) -> (..., rows)."""

    def __init__(self, cols: int, rows: int, bias: bool, ops: Backend) -> None:
        super().__init__()
        self.ops = ops
        self.weight: Weight = nn.Parameter(torch.empty(rows, cols))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def to_int8(self) -> None:
        """Quantize the weight, which is then no parameter: neither trained nor saved."""
        dense = self.weight
        assert isinstance(dense, Tensor)
        del self.weight
        self.weight = self.ops.quantize(dense)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias, residual=residual)


def project(x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
    """What each of the layers makes of the same x, in one operation."""
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return layers[0].ops.linears(x, weights, biases)


class Experts(nn.Module):
    """One matrix (rows, cols) for each expert, dense or packed, and its bias; `ops.moe` takes it.

    Packed matrices are buffers: they are not trained, and no change of dtype reaches them.
    """

    blocks: Tensor
    scales: Tensor

    def __init__(
        self, experts: int, cols: int, rows: int, bias: bool, format: ExpertFormat
    ) -> None:
        super().__init__()
        self.format = format
        # Set from outside, if they are read on demand, or updates of them are learned.
        self.stored: StoredExperts | LowRank | None = None
        if format is ExpertFormat.MXFP4:
            groups = cols // BLOCK
            blocks = torch.empty(experts, rows, groups, BLOCK // 2, dtype=torch.uint8)
            self.register_buffer("blocks", blocks)
            self.register_buffer("scales", torch.empty(experts, rows, groups, dtype=torch.uint8))
        else:
            self.weight = nn.Parameter(torch.empty(experts, rows, cols))
        self.bias = nn.Parameter(torch.empty(experts, rows)) if bias else None

    @property
    def matrices(self) -> Tensor | MXFP4 | StoredExperts | LowRank:
        """The stack (experts, rows, cols) as a value of its own type."""
        if self.stored is not None:
            return self.stored
        if self.format is ExpertFormat.MXFP4:
            return MXFP4(self.blocks, self.scales)
        return self.weight
