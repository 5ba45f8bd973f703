"""Held-out loss in bits per byte of text, which does not depend on the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100  # cross_entropy's own mark for a target that does not count
_TOKENS_AT_ONCE = 4096

Model = Callable[[Tensor], Tensor]  # int64 (batch, length) -> logits (batch, length, vocab)


@dataclass(frozen=True)
class HeldOut:
    """A text never trained on: its ids after one <|endoftext|>, and its bytes of UTF-8."""

    name: str
    tokens: Tensor
    num_bytes: int


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (windows, length) that predict each token after the first once; padding
    does not count.
    """
    tokens = tokens.long()
    count = -(-(len(tokens) - 1) // length)
    inputs = F.pad(tokens[:-1], (0, count * length - len(tokens) + 1))
    targets = F.pad(tokens[1:], (0, count * length - len(tokens) + 1), value=_IGNORED)
    return inputs.view(count, length), targets.view(count, length)


@torch.no_grad()
def nats(model: Model, tokens: Tensor, length: int) -> float:
    """The summed loss of all tokens after the first, read in consecutive windows that do not see
    one another.
    """
    inputs, targets = windows(tokens, length)
    rows = max(1, _TOKENS_AT_ONCE // length)
    total = 0.0
    for start in range(0, len(inputs), rows):
        logits = model(inputs[start : start + rows]).float()
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets[start : start + rows].flatten(), reduction="sum"
        )
        total += loss.item()
    return total


def bits_per_byte(model: Model, documents: Sequence[HeldOut], length: int) -> dict[str, float]:
    """Of each document by name, and of all together under "" (weighted by their bytes)."""
    losses = {d.name: nats(model, d.tokens, length) / math.log(2) for d in documents}
    result = {d.name: losses[d.name] / d.num_bytes for d in documents}
    result[""] = sum(losses.values()) / sum(d.num_bytes for d in documents)
    return result
