"""The arguments of operations, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, Router, SwiGLU
from ossia.ops.weight import Weight


class RopeTable(NamedTuple):
    """Cosines and sines by which pairs of dimensions are rotated: float32 (..., tokens,
    head_dim/2), scaled by YaRN's attention factor.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Documents:
    """The number of each token's text in a packed row: int64 (batch, length), not decreasing along
    a row. A token sees only its own text. bounds: int32 (batch, length) each, the position of the
    first token of each token's text, and the one behind its last, if `bounded` has computed them.
    """

    ids: Tensor
    bounds: tuple[Tensor, Tensor] | None = None

    def bounded(self) -> Documents:
        """The same documents with their bounds. Nothing waits for the device."""
        batch, length = self.ids.shape
        places = torch.arange(length, dtype=torch.int32, device=self.ids.device)
        begins = self.ids.diff(dim=1) != 0
        edge = places.new_zeros(batch, 1)
        firsts = torch.cat([edge, torch.where(begins, places[1:], 0)], 1).cummax(1).values
        ends = torch.cat([torch.where(begins, places[1:], length), edge + length], 1)
        return Documents(self.ids, (firsts, ends.flip(1).cummin(1).values.flip(1)))


@dataclass(frozen=True)
class AttentionSpec:
    """The properties of one attention layer.

    window: key j is visible to query i iff 0 <= i - j < window; None is full attention. sinks:
    logits (heads,) that join each softmax and whose columns are dropped. dropout: of probabilities.
    """

    window: int | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


class Norm(NamedTuple):
    """A normalisation over the last dimension: a layer norm, or an RMS norm if it has no bias; see
    `Backend.layer_norm` and `Backend.rms_norm`.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    round_before_weight: bool = False


class RouterWeights(NamedTuple):
    """The router of one layer: weight (experts, hidden), bias (experts,), how many experts a token
    gets, and how their weights come from the logits.
    """

    weight: Weight
    bias: Tensor | None
    chosen: int
    kind: Router


class Routing(NamedTuple):
    """The experts of each token, most likely first, int64 (tokens, chosen), and the weights of
    their outputs, float32 (tokens, chosen).
    """

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """The experts of one layer.

    gate_up (experts, 2 * inter, hidden), its rows gate, up, gate, up, ...; down (experts, hidden,
    inter); biases (experts, rows).
    """

    gate_up: Weight
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None
    activation: SwiGLU | ClampedSwiGLU
