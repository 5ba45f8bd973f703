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
        tokens, chosen = routing.experts.shape
        needed = routing.experts.unique().tolist()
        slot_of = torch.zeros(self.shape[0], dtype=torch.long)
        whole: Tensor | None = None
        parts: Tensor | None = None  # float32, one for each choice

        def use(ready: dict[int, int]) -> None:
            nonlocal whole, parts
            here = torch.tensor(list(ready))
            slot_of[here] = torch.tensor(list(ready.values()))
            if len(ready) == len(needed):
                own = Routing(slot_of[routing.experts], routing.weights)
                whole = backend.moe(x, own, slots, residual=residual, dtype=dtype)
                return
            choices = torch.isin(routing.experts, here).flatten().nonzero().flatten()
            own = Routing(
                slot_of[routing.experts.flatten()[choices], None],
                routing.weights.flatten()[choices, None],
            )
            part = backend.moe(x[choices // chosen], own, slots, dtype=torch.float32)
            if parts is None:
                parts = part.new_empty(tokens * chosen, part.shape[1])
            parts[choices] = part

        store.visit(self.layer, needed, use)
        if whole is not None:
            return whole
        assert parts is not None
        total = _summed(parts.view(tokens, chosen, -1))
        total = total if residual is None else total + residual
        return total.to(x.dtype if dtype is None else dtype)


def _summed(parts: Tensor) -> Tensor:
    """(tokens, hidden) of parts (tokens, chosen, hidden), added in the order of the choices."""
    total, *others = parts.unbind(1)
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
