"""Operations whose matrices are divided among the processes of a group, each with its own device.

A rank computes with its share of a layer's heads, hidden units or experts. What it would add to the
residual stream is a part of a sum, which `reduce` completes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import (
    ExpertsKind,
    Matrix,
    MatrixKind,
    Tensors,
    Weight,
    recipe_of,
    tensors_of,
)


class _Across(Backend):
    """Sums over the ranks what is added to a residual. Every rank has the same residual stream.

    The parts are summed in float32 or wider, and rounded once.
    """

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.linear."""
        if residual is None:
            return super().linear(x, weight, bias, dtype=dtype)
        part = super().linear(x, weight, bias, dtype=torch.promote_types(x.dtype, torch.float32))
        return (residual + self.reduce(part)).to(residual.dtype if dtype is None else dtype)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.moe."""
        if residual is None:
            return super().moe(x, routing, experts, dtype=dtype)
        wide = torch.promote_types(x.dtype, torch.float32)
        part = super().moe(x, routing, experts, dtype=wide)
        return (residual + self.reduce(part)).to(residual.dtype if dtype is None else dtype)

    def reduce(self, x: Tensor) -> Tensor:
        """As Backend.reduce; x is a fresh tensor, and becomes the sum."""
        dist.all_reduce(x)
        return x

    def recorder(self) -> None:
        """None: a recorded step would not meet those of the other ranks."""
        return

    def __reduce__(self) -> tuple[Any, ...]:
        return across, (type(self).__bases__[1](),)


def across(backend: Backend) -> Backend:
    """A backend that computes a rank's part of each sum as `backend` does."""
    kind = type("Across", (_Across, type(backend)), {"name": f"{backend.name}, across ranks"})
    return kind()


@dataclass(frozen=True)
class OwnExperts(ExpertsKind):
    """The experts of this rank, from number `first` on, of a layer's `count`."""

    inner: Weight
    first: int
    count: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.count, *self.inner.shape[1:]])

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.inner)

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_own, recipe_of(self.inner), self.first, self.count)

    def whole(self) -> Matrix:
        raise ValueError("other processes hold the other experts")

    def moe(
        self,
        backend: Backend,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        residual: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """As ExpertsKind.moe: the part of the sum that comes from own experts. A GPU waits for the
        host, which must know how many choices are its own.
        """
        assert isinstance(experts.down, OwnExperts)
        wide = torch.promote_types(x.dtype, torch.float32)
        ids = routing.experts.flatten() - self.first
        mine = ((ids >= 0) & (ids < self.inner.shape[0])).nonzero()[:, 0]
        local = replace(experts, gate_up=self.inner, down=experts.down.inner)
        ones = torch.ones(len(mine), 1, dtype=torch.float32, device=x.device)
        rows = x[mine // routing.experts.shape[1]]
        done = backend.moe(rows, Routing(ids[mine, None], ones), local, dtype=wide)
        outputs = torch.zeros(len(ids), x.shape[1], dtype=wide, device=x.device)
        outputs[mine] = done
        weights = routing.weights[..., None].to(wide)
        part = (outputs.view(*weights.shape[:2], -1) * weights).sum(1)
        out = part if residual is None else residual + backend.reduce(part)
        return out.to(x.dtype if dtype is None else dtype)


def _own(inner: Callable[[Tensors], Weight], first: int, count: int, tensors: Tensors) -> Weight:
    return OwnExperts(inner(tensors), first, count)


def cut(weight: Weight, dim: int, share: slice) -> Weight:
    """A part of a dense or packed matrix, or stack, copied. share: of the dimension's size, which
    packed blocks divide, so it begins and ends between blocks.
    """
    if not isinstance(weight, Tensor | MatrixKind):
        raise TypeError(f"{type(weight).__name__} cannot be divided among processes")
    size = weight.shape[dim]
    parts = {}
    for name, tensor in tensors_of(weight).items():
        unit = size // tensor.shape[dim]
        assert not share.start % unit
        assert not share.stop % unit
        length = (share.stop - share.start) // unit
        parts[name] = tensor.detach().narrow(dim, share.start // unit, length).clone()
    return recipe_of(weight)(parts)
