"""The native backend in a faster mode that changes numbers: what prompts multiply with weights in
int8 or MXFP4 is rounded to int8.

128 columns of a token share a scale, as those of an int8 weight do (`ossia.ops.int8`), so that
sums of 128 products are exact in 32-bit integers, and the processor multiplies twice as many
numbers at once as of words. Steps that decode, sequences of up to 16 tokens in a step, dense
weights in floats, experts that are read from disk, the unembedding and attention are computed as
without this mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.ops.backend import Where
from ossia.ops.cpu import NativeBackend
from ossia.ops.paged import PagedKV
from ossia.ops.values import ExpertWeights, Routing
from ossia.ops.weight import ExpertsKind, Weight


@dataclass(frozen=True)
class _Mixed:
    """The rows, int64, of a step's prompts and those of texts that decode."""

    prompts: Tensor
    decoding: Tensor

    def __len__(self) -> int:
        return len(self.prompts) + len(self.decoding)

    def joined(self, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The results of both, in the order of the step's rows."""
        with _within(True):
            prompts = compute(self.prompts)
        with _within(False):
            decoding = compute(self.decoding)
        out = prompts.new_empty(len(self), *prompts.shape[1:])
        out[self.prompts], out[self.decoding] = prompts, decoding
        return out


_FEW = 16  # tokens, up to which kernels round nothing

# Whether the rows of this pass are a prompt's, all or none or some.
_rows: ContextVar[bool | _Mixed] = ContextVar("rows", default=False)


@contextmanager
def _within(rows: bool | _Mixed) -> Iterator[None]:
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


class RoundedPrompts(NativeBackend):
    """The native backend with `--activations int8`."""

    @contextmanager
    def reading(self, where: Where | PagedKV) -> Iterator[None]:
        """As Backend.reading: whole rows are prompts, and over pages what has many tokens."""
        with _within(_prompts(where)):
            yield

    def rounds(self) -> bool:
        """As NativeBackend.rounds."""
        return _rows.get() is True

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
        compute, rows = super().linear, _rows.get()
        if isinstance(rows, bool) or isinstance(weight, Tensor):
            return compute(x, weight, bias, residual=residual, dtype=dtype)
        return rows.joined(
            lambda own: compute(x[own], weight, bias, residual=_some(residual, own), dtype=dtype)
        )

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.linears."""
        if isinstance(_rows.get(), bool) or isinstance(weights[0], Tensor):
            return super().linears(x, weights, biases)
        return tuple(self.linear(x, *pair) for pair in zip(weights, biases, strict=True))

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
        compute, rows = super().moe, _rows.get()
        if isinstance(experts.gate_up, ExpertsKind):
            # They come from disk in parts, in an order that no result may depend on.
            with _within(False):
                return compute(x, routing, experts, residual=residual, dtype=dtype)
        if isinstance(rows, bool) or isinstance(experts.gate_up, Tensor):
            return compute(x, routing, experts, residual=residual, dtype=dtype)
        return rows.joined(
            lambda own: compute(
                x[own],
                Routing(routing.experts[own], routing.weights[own]),
                experts,
                residual=_some(residual, own),
                dtype=dtype,
            )
        )


def _some(x: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if x is None else x[rows]


def _prompts(where: Where | PagedKV) -> bool | _Mixed:
    if not isinstance(where, PagedKV):
        return True
    if where.one_query:
        return False
    spans = where.spans
    counts = where.query_lengths.tolist() if spans is None else [count for _, count in spans]
    # Of each sequence alone, so that none depends on what shares its step.
    if all(count > _FEW for count in counts):
        return True
    if all(count <= _FEW for count in counts):
        return False
    each = torch.tensor(counts)
    is_prompt = (each > _FEW).repeat_interleave(each)
    return _Mixed(is_prompt.nonzero().flatten(), (~is_prompt).nonzero().flatten())


ROUNDED_PROMPTS = RoundedPrompts()
