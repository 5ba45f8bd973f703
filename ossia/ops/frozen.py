"""Products with a frozen matrix that is unpacked, or cast, when it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a matrix that are unpacked at a time: few enough to stay in the cache.
_UNPACKED = 1 << 20


class Rows(Protocol):
    """A matrix (rows, cols) that can be sliced by rows."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, index: slice, /) -> Any: ...


Packed = TypeVar("Packed", bound=Rows)
Unpack = Callable[[Any, torch.dtype], Tensor]


def linear(x: Tensor, weight: Rows, unpack: Unpack) -> Tensor:
    """x (..., cols) times weight (rows, cols) transposed, with a gradient for x alone.

    `unpack(rows of weight, dtype)` is called piece by piece, and again for the gradient.
    """
    return _Frozen.apply(x, weight, unpack)


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The `unpack` of a dense matrix of another dtype."""
    return weight.to(dtype)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Rows, unpack: Unpack) -> Tensor:
        ctx.weight, ctx.unpack = weight, unpack
        pieces = _pieces(weight, unpack, x.dtype)
        return torch.cat([F.linear(x, piece) for _, piece in pieces], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pieces = _pieces(ctx.weight, ctx.unpack, gradient.dtype)
        parts = [gradient[..., rows] @ piece for rows, piece in pieces]
        return sum(parts[1:], parts[0]), None, None


def _pieces(weight: Rows, unpack: Unpack, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The matrix piece by piece: rows, and their unpacked values."""
    count, cols = weight.shape
    step = max(1, _UNPACKED // cols)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        yield rows, unpack(weight[rows], dtype)
