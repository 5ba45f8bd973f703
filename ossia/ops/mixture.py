"""A mixture of experts as one operation with a gradient, over native passes between its products.

It keeps x, the outputs of the first matrices, and what the products ask for: nothing else that can
be computed from these in a pass over memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops.mxfp4 import BLOCK
from ossia.ops.packing import native
from ossia.ops.values import ExpertWeights, Routing

Factors = Sequence[Tensor | None]  # two tensors that are learned, or None
Kept = Sequence[Tensor | None]  # what the gradients of a product need, the factors included


def products() -> ModuleType:
    """The native functions, which the caller has found to be there."""
    found = native()
    assert found is not None
    return found


@dataclass(frozen=True)
class Groups:
    """Rows that are sorted by expert: int64 counts (experts,)."""

    counts: Tensor

    def __iter__(self) -> Iterator[tuple[slice, int]]:
        """The rows of each expert that has some."""
        first = 0
        for expert, count in enumerate(self.counts.tolist()):
            if count:
                yield slice(first, first + count), expert
            first += count


class Product(Protocol):
    """Products with the matrices of all experts, some of whose tensors, `factors`, are learned.

    It holds none of these, nor what is computed from them: autograd keeps it beside the tensors
    that it saves, and frees only those in recomputed layers.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        ...

    def product(self, x: Tensor, groups: Groups, factors: Factors) -> tuple[Tensor, Kept]:
        """x (tokens, cols) -> (tokens, rows), biases included, and what the gradients need."""
        ...

    def gradient(self, slope: Tensor, groups: Groups, kept: Kept) -> Tensor:
        """The gradient (tokens, cols) of `product`'s x by that of its result (tokens, rows)."""
        ...

    def learned(self, x: Tensor, slope: Tensor, groups: Groups, kept: Kept) -> Factors:
        """The gradients of the factors."""
        ...


@dataclass(frozen=True)
class Mixture:
    """The experts of a layer and the order of their tokens' choices."""

    first: Product
    last: Product
    activation: SwiGLU | ClampedSwiGLU
    last_bias: Tensor | None
    groups: Groups
    order: Tensor  # int64 (choices,): the choice at each place
    chosen: int

    @staticmethod
    def of(routing: Routing, experts: ExpertWeights, first: Product, last: Product) -> Mixture:
        """The experts of a routing, by the products with their first and last matrices."""
        choices = routing.experts.flatten()
        return Mixture(
            first,
            last,
            experts.activation,
            experts.down_bias,
            Groups(choices.bincount(minlength=experts.down.shape[0])),
            choices.argsort(stable=True),
            routing.experts.shape[1],
        )

    @property
    def tokens(self) -> Tensor:
        """The token of each place."""
        return self.order // self.chosen

    def sums(self, values: Tensor) -> Tensor:
        """The sum of the places (places, width) of each token -> (tokens, width)."""
        each = values[self.order.argsort()]
        return each.view(-1, self.chosen, values.shape[-1]).sum(1)


def takes(x: Tensor, experts: ExpertWeights) -> bool:
    """Whether the native passes between the products take the tokens and the activation."""
    return x.is_cpu and x.numel() > 0 and not experts.down.shape[-1] % BLOCK


def mixture(x: Tensor, weights: Tensor, job: Mixture, first: Factors, last: Factors) -> Tensor:
    """x (tokens, hidden) through its experts, weighted (tokens, chosen) and summed, in float32.

    first, last: the factors of the products of these names.
    """
    return _Experts.apply(x, weights, job, *first, *last)


class _Experts(torch.autograd.Function):
    """x (tokens, hidden) through its experts, weighted and summed.

    The gradient of a weight is the product of its expert's output, which is not kept, with the
    slope of the token: that of the last matrix's input with the slope times the matrix, which the
    gradient of x needs too, plus that of the bias with the slope.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        job: Mixture,
        *factors: Tensor | None,
    ) -> Tensor:
        native = products()
        first, last = factors[:2], factors[2:]
        with torch.autocast("cpu", enabled=False):
            narrow = x.to(job.first.dtype)
            pairs, kept = job.first.product(narrow[job.tokens], job.groups, first)
            units = native.activate(pairs, job.activation)
            out, kept_last = job.last.product(units, job.groups, last)
            places = weights.flatten()[job.order, None]
            result = job.sums(out.float().mul_(places))
        ctx.job, ctx.of_first = job, len(kept)
        ctx.save_for_backward(narrow, weights, pairs, *kept, *kept_last)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        job, native = ctx.job, products()
        x, weights, pairs, *rest = ctx.saved_tensors
        kept, kept_last = rest[: ctx.of_first], rest[ctx.of_first :]
        slope = slope.to(job.last.dtype)[job.tokens]  # of an output as if its weight were 1
        units = native.activate(pairs, job.activation)
        d_units = job.last.gradient(slope, job.groups, kept_last)
        d_weights = (d_units * units).sum(-1, dtype=torch.float32)
        if job.last_bias is not None:
            for rows, expert in job.groups:
                d_weights[rows] += slope[rows].float() @ job.last_bias[expert].float()
        places = weights.flatten()[job.order, None].to(slope.dtype)
        d_last = job.last.learned(units, slope.mul_(places), job.groups, kept_last)
        d_pairs = native.activation_gradient(pairs, d_units.mul_(places), job.activation)
        d_first = job.first.learned(x[job.tokens], d_pairs, job.groups, kept)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = job.sums(job.first.gradient(d_pairs, job.groups, kept).float())
        of_choices = torch.empty_like(d_weights)
        of_choices[job.order] = d_weights
        return d_x, of_choices.view(weights.shape), None, *d_first, *d_last
