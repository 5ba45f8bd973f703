"""Operations at the shapes of true models, as functions of a backend and of what makes inputs.

With meta tensors they say which kernels to compile (`ahead`); on a card they are run and compared
with the reference (`test_true_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.ops import Backend


@dataclass(frozen=True)
class Inputs:
    """Makes the tensors of one case, the same ones for every backend."""

    device: torch.device

    def normal(
        self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0
    ) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return (torch.randn(shape, generator=generator, device=self.device) * scale).to(dtype)

    def integers(
        self, high: int, *shape: int, dtype: torch.dtype = torch.int64, low: int = 0
    ) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        options = {"generator": generator, "device": self.device, "dtype": dtype}
        return torch.randint(low, high, shape, **options)


Case = Callable[[Backend, Inputs], Tensor]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def rms_norm(ops: Backend, inputs: Inputs) -> Tensor:
    x, weight = inputs.normal(8, 2880), inputs.normal(2880)
    return ops.rms_norm(x, weight, 1e-5, round_before_weight=False)


@case
def layer_norm(ops: Backend, inputs: Inputs) -> Tensor:
    x, weight, bias = inputs.normal(8, 768), inputs.normal(768), inputs.normal(768)
    return ops.layer_norm(x, weight, bias, 1e-5)
