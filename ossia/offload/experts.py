"""Experts on disk as a kind of weight: a reference into an ExpertStore."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.offload.store import ExpertStore
from ossia.ops import Backend, ExpertWeights, Routing
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.weight import ExpertsKind, Tensors, Weight


@dataclass(frozen=True)
class Predictor:
    """Predicts the experts of the next layer from this layer's input.

    The residual stream changes little from layer to layer, so the next router is applied to this
    layer's input. `ratio` is the next norm's weight over this one's and replaces one by the other.
    """

    router: Tensor
    bias: Tensor | None
    ratio: Tensor
    chosen: int

    def experts(self, backend: Backend, x: Tensor) -> list[int]:
        """The next layer's likely experts for tokens x (tokens, hidden)."""
        logits = backend.linear(x * self.ratio, self.router, self.bias)
        return logits.topk(self.chosen).indices.unique().tolist()


@dataclass(frozen=True)
class StoredExperts(ExpertsKind):
    """The matrices (experts, rows, cols) of one layer in a store. `mapped` is the stack in the
    mapped file, which only saving reads.
    """

    mapped: MXFP4
    store: ExpertStore
    layer: int
    predictor: Predictor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.mapped.shape

    def tensors(self) -> dict[str, Tensor]:
        return self.mapped.tensors()

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_built, self.store, self.layer, self.predictor)

    def whole(self) -> MXFP4:
        return self.mapped

    def moe(
        self,
        backend: Backend,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        residual: Tensor | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """As ExpertsKind.moe: the backend's `moe` over the store's slots, which are an ordinary
        stack of experts.

        If experts arrive one after another, their outputs are kept in float32 and added in the
        order of each token's choices. For a few tokens the result has the same bits as native
        kernels with all experts in memory. For many it may differ by rounding, because a smaller
        batch may select another kernel.
        """
        store = self.store
        biases = store.biases or (None, None)
        slots = replace(
            experts,
            gate_up=store.gate_up,
            gate_up_bias=biases[0],
            down=store.down,
            down_bias=biases[1],
        )
        if not x.numel():
            return backend.moe(x, routing, slots, residual=residual, dtype=dtype)
        if self.predictor is not None:
            store.prefetch(self.layer + 1, self.predictor.experts(backend, x))
        slot_of = torch.zeros(self.shape[0], dtype=torch.long)
        parts = _Parts(backend, x, routing, slots)
        needed = routing.experts.unique().tolist()
        whole: Tensor | None = None

        def use(ready: dict[int, int]) -> None:
            nonlocal whole
            slot_of[list(ready)] = torch.tensor(list(ready.values()))
            own = Routing(slot_of[routing.experts], routing.weights)
            if len(ready) == len(needed):
                whole = backend.moe(x, own, slots, residual=residual, dtype=dtype)
            else:
                parts.add(own, torch.isin(routing.experts, torch.tensor(list(ready))))

        store.visit(self.layer, needed, use)
        if whole is not None:
            return whole
        total = parts.total()
        total = total if residual is None else total + residual
        return total.to(x.dtype if dtype is None else dtype)


class _Parts:
    """The outputs of experts that arrive one after another, in float32, one for each choice."""

    def __init__(self, backend: Backend, x: Tensor, routing: Routing, slots: ExpertWeights) -> None:
        self._backend, self._x, self._slots = backend, x, slots
        self._tokens, self._chosen = routing.experts.shape
        self._outputs: Tensor | None = None  # (tokens * chosen, hidden)

    def add(self, routing: Routing, arrived: Tensor) -> None:
        """Compute the choices that `arrived` (tokens, chosen) marks."""
        choices = arrived.flatten().nonzero().flatten()
        experts, weights = routing.experts.flatten(), routing.weights.flatten()
        own = Routing(experts[choices, None], weights[choices, None])
        x = self._x[choices // self._chosen]
        part = self._backend.moe(x, own, self._slots, dtype=torch.float32)
        if self._outputs is None:
            self._outputs = part.new_empty(self._tokens * self._chosen, part.shape[1])
        self._outputs[choices] = part

    def total(self) -> Tensor:
        """(tokens, hidden), added in the order of each token's choices."""
        assert self._outputs is not None
        total, *others = self._outputs.view(self._tokens, self._chosen, -1).unbind(1)
        for part in others:
            total = total + part
        return total


def store_of(decoder: Decoder) -> ExpertStore | None:
    """The store that a decoder's experts are read from; None if all are in memory or mapped."""
    for module in decoder.modules():
        if isinstance(module, Experts) and isinstance(module.value, StoredExperts):
            return module.value.store
    return None


def _built(
    store: ExpertStore, layer: int, predictor: Predictor | None, tensors: Tensors
) -> StoredExperts:
    return StoredExperts(MXFP4(tensors["blocks"], tensors["scales"]), store, layer, predictor)
