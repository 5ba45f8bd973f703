"""A weight is a value: one dense tensor, or a `WeightKind` that defines its tensors and what it
computes.

`model.Linear` and `model.Experts` hold the tensors; the kind turns them into the value that a
backend computes with. `Weighted.replace` is the only way to change a weight of a built model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ossia.ops.backend import Backend
    from ossia.ops.values import ExpertWeights, Routing

Tensors = Mapping[str, Tensor]


class WeightKind(ABC):
    """A weight that is not one dense tensor of its own shape."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """The shape of the matrix, or stack of matrices, that it represents."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the names under which a module registers them: an `nn.Parameter` is
        trained and saved, any other tensor is a buffer.
        """

    @abstractmethod
    def recipe(self) -> Callable[[Tensors], Weight]:
        """A function that rebuilds this value from `tensors` and holds no reference to one."""


class MatrixKind(WeightKind):
    """A matrix (rows, cols), or a stack (experts, rows, cols) of them, in another form."""

    @abstractmethod
    def linear(self, x: Tensor) -> Tensor:
        """x (..., cols) times the matrix transposed, in plain PyTorch: the definition."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix in float32, as it would be saved."""

    @abstractmethod
    def __getitem__(self, index: Any, /) -> MatrixKind:
        """Some rows of a matrix, or one matrix of a stack, if the kind supports it."""

    @abstractmethod
    def unbind(self) -> Matrices:
        """The matrices of a stack."""

    def stored(self) -> MatrixKind:
        """In the layout of a checkpoint, if a backend's `place` gave it another."""
        return self


class ExpertsKind(WeightKind):
    """A stack of experts of which this process holds only a part, the others being on disk or on
    other ranks. It runs `moe` itself and uses a backend for the experts at hand.
    """

    @abstractmethod
    def moe(
        self,
        backend: Backend,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        residual: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """As `Backend.moe`; both matrices of `experts` are of this kind."""

    @abstractmethod
    def whole(self) -> Matrix:
        """The complete stack, to be saved. Raises ValueError if this process cannot read it."""


Matrix = Tensor | MatrixKind
Weight = Tensor | WeightKind


class Matrices(Protocol):
    """A stack by index: a tuple of matrices, or a packed stack."""

    def __getitem__(self, index: int, /) -> Matrix: ...


def dense(weight: Matrix, index: int | None = None) -> Tensor:
    """A weight, or one matrix of a stack, in float32, as it would be saved: without a gradient."""
    part = weight if index is None else weight[index]
    return (part.float() if isinstance(part, Tensor) else part.dense()).detach()


def tensors_of(weight: Weight) -> dict[str, Tensor]:
    """A weight's tensors, by the names under which a module registers them."""
    return {"weight": weight} if isinstance(weight, Tensor) else weight.tensors()


def recipe_of(weight: Weight) -> Callable[[Tensors], Weight]:
    """A function that rebuilds a weight from its `tensors_of`."""
    return _dense_recipe if isinstance(weight, Tensor) else weight.recipe()


def _dense_recipe(tensors: Tensors) -> Tensor:
    return tensors["weight"]
