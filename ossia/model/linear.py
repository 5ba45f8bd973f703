"""Modules with one weight of any kind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ossia.config import ExpertFormat, Role
from ossia.ops import Backend, Norm
from ossia.ops.mxfp4 import BLOCK, MXFP4
from ossia.ops.weight import Tensors, Weight, recipe_of, tensors_of


class Weighted(nn.Module):
    """A module with one weight. It registers the weight's tensors; `value` builds the weight from
    them.
    """

    weight: nn.Parameter  # of a dense weight

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role
        self._names: tuple[str, ...] = ()
        self._recipe: Callable[[Tensors], Weight] | None = None  # None: one dense tensor

    @property
    def value(self) -> Weight:
        """The weight, of whatever kind."""
        if self._recipe is None:
            return self.weight
        return self._recipe({name: getattr(self, name) for name in self._names})

    def place(self, name: str, ops: Backend) -> None:
        """Let a backend change the weight's layout; `name` is this module's."""
        weight = self.value
        placed = ops.place(name, weight)
        if placed is not weight:
            self.replace(placed)

    def replace(self, weight: Weight) -> None:
        """Replace the weight; the only way to change a weight of a built model. Tensors that are
        not parameters become buffers, except a dense weight, which becomes a frozen parameter.
        """
        dense = isinstance(weight, Tensor)
        tensors = tensors_of(weight)
        if dense and not isinstance(weight, nn.Parameter):
            tensors = {"weight": nn.Parameter(weight, requires_grad=False)}
        self._recipe = None if dense else recipe_of(weight)
        if tensors.keys() == set(self._names) and all(
            getattr(self, name) is tensor for name, tensor in tensors.items()
        ):
            return  # another kind over the same tensors
        for name in self._names:
            delattr(self, name)
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self._names = tuple(tensors)


class Linear(Weighted):
    """x (..., cols) -> (..., rows)."""

    def __init__(self, shape: tuple[int, int], role: Role, bias: bool, ops: Backend) -> None:
        """shape: (cols, rows)."""
        super().__init__(role)
        cols, rows = shape
        self.ops = ops
        self.replace(nn.Parameter(torch.empty(rows, cols)))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.ops.linear(x, self.value, self.bias, residual=residual)


def project(x: Tensor, norm: Norm, *layers: Linear) -> tuple[Tensor, ...]:
    """The outputs of several layers for the same normalised x, as one operation."""
    weights, biases = [layer.value for layer in layers], [layer.bias for layer in layers]
    return layers[0].ops.normed_linears(x, norm, weights, biases)


class Experts(Weighted):
    """One matrix (rows, cols) per expert, dense or packed, and its bias, for `Backend.moe`.

    Packed matrices are buffers: they are not trained, and a change of dtype does not affect them.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        role: Role,
        bias: bool,
        format: ExpertFormat,
    ) -> None:
        """shape: (experts, cols, rows)."""
        super().__init__(role)
        experts, cols, rows = shape
        if format is ExpertFormat.MXFP4:
            groups = cols // BLOCK
            blocks = torch.empty(experts, rows, groups, BLOCK // 2, dtype=torch.uint8)
            self.replace(MXFP4(blocks, torch.empty(experts, rows, groups, dtype=torch.uint8)))
        else:
            self.replace(nn.Parameter(torch.empty(experts, rows, cols)))
        self.bias = nn.Parameter(torch.empty(experts, rows)) if bias else None
