"""Held-out loss in bits per byte of text, which does not depend on the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.model import Decoder
from ossia.ops import Documents
from ossia.train.loss import IGNORED, linear_cross_entropy

_TOKENS_AT_ONCE = 4096

# int64 inputs and targets (rows, length) -> the summed loss in nats of targets not IGNORED; a third
# tensor may number the documents packed in each row.
SummedLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class HeldOut:
    """A text never trained on: its ids after one <|endoftext|>, and its bytes of UTF-8."""

    name: str
    tokens: Tensor
    num_bytes: int


def loss_of(decoder: Decoder) -> SummedLoss:
    """A decoder's, without the logits of all tokens at once."""

    def loss(inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        hidden = hidden_states(decoder, inputs, documents).flatten(0, -2)
        return linear_cross_entropy(hidden, unembedding(decoder), targets.flatten(), count=1)[1]

    return loss


def hidden_states(decoder: Decoder, inputs: Tensor, documents: Tensor | None) -> Tensor:
    """(rows, length, hidden) of int64 inputs (rows, length); `documents` numbers the texts packed
    in a row.
    """
    where = None if documents is None else Documents(documents)
    return decoder.hidden_states(inputs, decoder.context(inputs, where=where))


def unembedding(decoder: Decoder) -> Tensor:
    """The dense matrix (vocab, hidden) that hidden states are read out by."""
    last = decoder.unembedding
    weight = decoder.embedding.weight if last is None else last.value
    assert isinstance(weight, Tensor)
    return weight


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (windows, length) that predict each token after the first once; padding
    does not count.
    """
    tokens = tokens.long()
    count = -(-(len(tokens) - 1) // length)
    inputs = F.pad(tokens[:-1], (0, count * length - len(tokens) + 1))
    targets = F.pad(tokens[1:], (0, count * length - len(tokens) + 1), value=IGNORED)
    return inputs.view(count, length), targets.view(count, length)


@torch.no_grad()
def nats(loss: SummedLoss, tokens: Tensor, length: int) -> float:
    """The summed loss of all tokens after the first, read in consecutive windows that do not see
    one another.
    """
    inputs, targets = windows(tokens, length)
    rows = max(1, _TOKENS_AT_ONCE // length)
    parts = zip(inputs.split(rows), targets.split(rows), strict=True)
    return sum(loss(*part).item() for part in parts)


def bits_per_byte(loss: SummedLoss, documents: Sequence[HeldOut], length: int) -> dict[str, float]:
    """Of each document by name, and of all together under "" (weighted by their bytes)."""
    losses = {d.name: nats(loss, d.tokens, length) / math.log(2) for d in documents}
    result = {d.name: losses[d.name] / d.num_bytes for d in documents}
    result[""] = sum(losses.values()) / sum(d.num_bytes for d in documents)
    return result
