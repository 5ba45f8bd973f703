"""Low-rank updates of a frozen matrix (LoRA; Hu et al. 2021,
https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops import frozen, packing
from ossia.ops.autocast import autocast_dtype
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.weight import MatrixKind, Tensors, Weight, recipe_of, tensors_of


@dataclass(frozen=True)
class LowRank(MatrixKind):
    """base + scale * b @ a, or a stack of such matrices. Only a and b are trained.

    base (..., rows, cols), of any dtype or packed; a (..., rank, cols); b (..., rows, rank).
    dropout: of the input of a, while gradients are computed.
    """

    base: Tensor | MXFP4
    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    def __getitem__(self, index: int | slice) -> LowRank:
        """One matrix of a stack, or some rows of a matrix."""
        if len(self.shape) == 2:
            return replace(self, base=self.base[index], b=self.b[index])
        return replace(self, base=self.base[index], a=self.a[index], b=self.b[index])

    def linear(self, x: Tensor) -> Tensor:
        """See MatrixKind; with gradients for x, a and b."""
        return torch.add(self._frozen(x), self.update(self.read(x)), alpha=self.scale)

    def read(self, x: Tensor) -> Tensor:
        """The input of a: x, or in training x with dropout."""
        # Evaluation computes no gradients.
        drops = self.dropout > 0 and torch.is_grad_enabled()
        return F.dropout(x, self.dropout) if drops else x

    def update(self, x: Tensor) -> Tensor:
        """x (..., cols) through a and b, unscaled."""
        return F.linear(F.linear(x, self.a), self.b)

    def dense(self) -> Tensor:
        """The sum, in float32 under autocast too: what training rounds is what will be saved."""
        base = packing.dense(self.base)
        a, b = self.a.detach().float(), self.b.detach().float()
        own = base if isinstance(self.base, MXFP4) else None  # new memory takes as long as the sum
        add = torch.baddbmm if base.ndim > 2 else torch.addmm
        with torch.autocast(base.device.type, enabled=False):
            return add(base, b, a, alpha=self.scale, out=own)

    def unbind(self) -> list[LowRank]:
        parts = zip(self.a.unbind(), self.b.unbind(), strict=True)
        return [replace(self, base=self.base[i], a=a, b=b) for i, (a, b) in enumerate(parts)]

    def tensors(self) -> dict[str, Tensor]:
        return {**tensors_of(self.base), "lora_a": self.a, "lora_b": self.b}

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_built, recipe_of(self.base), self.scale, self.dropout)

    def _frozen(self, x: Tensor) -> Tensor:
        if isinstance(self.base, MXFP4):
            return self.base.linear(x)
        if self.base.dtype in (x.dtype, autocast_dtype(x)):
            return F.linear(x, self.base)
        return frozen.linear(x, self.base, frozen.cast)


def _built(
    base: Callable[[Tensors], Weight], scale: float, dropout: float, tensors: Tensors
) -> LowRank:
    built = base(tensors)
    assert isinstance(built, Tensor | MXFP4)
    return LowRank(built, tensors["lora_a"], tensors["lora_b"], scale, dropout)
