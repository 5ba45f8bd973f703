"""The training objective: a decoder and its losses as one module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ossia.model import Decoder
from ossia.train.balance import RouterLog
from ossia.train.evaluate import hidden_states, unembedding
from ossia.train.loss import linear_cross_entropy


@dataclass(frozen=True)
class Losses:
    """The losses of a part of a batch, in proportion to its tokens, so that parts can be added."""

    total: Tensor  # to be minimised
    cross_entropy: Tensor  # nats a token, without gradient
    balance: Tensor | None  # the mean over the layers, without gradient; None without experts


class Objective(nn.Module):
    """Tokens to losses. As one module, because FSDP must see all uses of a weight."""

    def __init__(self, decoder: Decoder, *, balance: float, z_loss: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.balance, self.z_loss = balance, z_loss
        self.routers = RouterLog(decoder)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        documents: Tensor | None,
        count: float,
        share: float = 1.0,
    ) -> Losses:
        """int64 (rows, length) each: a `share` of the batch, which trains on `count` targets.

        `documents` numbers the texts packed in a row; they do not attend to each other.
        """
        with self.routers.listening(targets) as balances:
            hidden = hidden_states(self.decoder, inputs, documents)
        weight = unembedding(self.decoder)
        total, cross_entropy = linear_cross_entropy(
            hidden.flatten(0, -2), weight, targets.flatten(), count, self.z_loss
        )
        if not balances:
            return Losses(total, cross_entropy, None)
        balance = sum(balances[1:], balances[0]) / len(balances) * share
        return Losses(total + self.balance * balance, cross_entropy, balance.detach())
