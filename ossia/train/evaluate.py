"""Held-out loss, in nats and in bits per byte of text, which does not depend on the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.model import Decoder
from ossia.ops import Documents
from ossia.train.device import send
from ossia.train.loss import IGNORED, linear_cross_entropy

_TOKENS_AT_ONCE = 4096

# (inputs, targets, documents=None), each int64 (rows, length) -> the summed loss in nats of all
# targets but IGNORED ones. `documents` numbers the texts packed in each row.
SummedLoss = Callable[..., Tensor]


@dataclass(frozen=True)
class HeldOut:
    """A text that is never trained on: <|endoftext|> and its ids, and its size in UTF-8 bytes."""

    name: str
    tokens: Tensor
    num_bytes: int


def loss_of(decoder: Decoder) -> SummedLoss:
    """The summed loss of a decoder, computed without all logits in memory at once."""

    def loss(inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        documents = None if documents is None else send(documents, decoder.device)
        inputs, targets = send(inputs, decoder.device), send(targets, decoder.device)
        hidden = hidden_states(decoder, inputs, documents).flatten(0, -2)
        return linear_cross_entropy(hidden, unembedding(decoder), targets.flatten(), count=1)[1]

    return loss


def hidden_states(decoder: Decoder, inputs: Tensor, documents: Tensor | None) -> Tensor:
    """(rows, length, hidden) of int64 inputs (rows, length); `documents` numbers the texts packed
    in a row.
    """
    where = None if documents is None else Documents(documents)
    if where is not None and inputs.device.type != "cpu":
        where = where.bounded()  # once for all layers
    return decoder.hidden_states(inputs, decoder.context(inputs, where=where))


def unembedding(decoder: Decoder) -> Tensor:
    """The dense matrix (vocab, hidden) that hidden states are read out by."""
    last = decoder.unembedding
    weight = decoder.embedding.weight if last is None else last.value
    assert isinstance(weight, Tensor)
    return weight


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (windows, length) that predict each token after the first once; the padded
    targets are IGNORED.
    """
    tokens = tokens.long()
    count = -(-(len(tokens) - 1) // length)
    inputs = F.pad(tokens[:-1], (0, count * length - len(tokens) + 1))
    targets = F.pad(tokens[1:], (0, count * length - len(tokens) + 1), value=IGNORED)
    return inputs.view(count, length), targets.view(count, length)


@torch.no_grad()
def nats(loss: SummedLoss, tokens: Tensor, length: int) -> float:
    """The summed loss of all tokens after the first, read in consecutive windows; none attends to
    another.
    """
    inputs, targets = windows(tokens, length)
    rows = max(1, _TOKENS_AT_ONCE // length)
    parts = zip(inputs.split(rows), targets.split(rows), strict=True)
    return sum(loss(*part).item() for part in parts)


def bits_per_byte(loss: SummedLoss, documents: Sequence[HeldOut], length: int) -> dict[str, float]:
    """The loss of each document by name, and that of all documents together under ""."""
    losses = {d.name: nats(loss, d.tokens, length) / math.log(2) for d in documents}
    result = {d.name: losses[d.name] / d.num_bytes for d in documents}
    result[""] = sum(losses.values()) / sum(d.num_bytes for d in documents)
    return result
