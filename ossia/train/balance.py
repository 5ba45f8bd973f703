"""The load-balancing loss, which keeps a router from sending most tokens to a few experts, and the
count of tokens per expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ossia.config import MoEConfig
from ossia.model import Decoder
from ossia.ops.training import Training
from ossia.train.loss import IGNORED


def load_balance(logits: Tensor, chosen: int, text: Tensor) -> Tensor:
    """experts * sum over experts of (share of assignments) * (mean probability); 1 when both are
    even.

    logits (tokens, experts); text: bool (tokens,), False for padding, which does not count. Fedus
    et al. 2021, equations 4 to 6, https://arxiv.org/abs/2101.03961, with `chosen` experts per
    token. Only the probabilities carry a gradient. On several processes both factors are of the
    tokens of all, so the mean of their losses is the loss of all tokens; each must have as many
    rows of logits. 0 without any text.
    """
    tokens, experts = logits.shape
    share = assignments(logits, chosen, text)
    if dist.is_initialized():
        dist.all_reduce(share)
        tokens *= dist.get_world_size()
    total = share.sum().clamp(min=1)
    probabilities = F.softmax(logits.float(), dim=-1) * text[:, None]
    # Of the tokens that count. By a division of tensors, the factor is exactly 1 without padding.
    mean = probabilities.mean(0) * (torch.full_like(total, tokens * chosen) / total)
    return experts * (share / total * mean).sum()


def assignments(logits: Tensor, chosen: int, text: Tensor) -> Tensor:
    """Float32 (experts,): how many tokens of logits (tokens, experts) choose each expert, where
    text, bool (tokens,), is True.
    """
    choices = logits.topk(chosen, dim=-1).indices
    counted = text[:, None].expand_as(choices).to(torch.int32)
    # bincount would wait for a GPU.
    counts = counted.new_zeros(logits.shape[-1])
    return counts.scatter_add_(0, choices.flatten(), counted.flatten()).float()


def before_padding(targets: Tensor) -> Tensor:
    """Bool (rows, length): True up to a row's last target; what follows is padding."""
    return (targets != IGNORED).flip(1).cummax(1).values.flip(1)


class RouterLog:
    """Collects balance losses and expert counts from the routers of a training decoder."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        layers = enumerate(decoder.config.layers)
        self._moe_layers = [i for i, x in layers if isinstance(x.feedforward, MoEConfig)]
        self._losses: list[Tensor] | None = None
        self._counts: dict[int, Tensor] | None = None
        self._text: Tensor | None = None  # of the newest pass: True where there is no padding
        self._heard = 0  # routers seen since listening began
        assert isinstance(decoder.ops, Training)
        decoder.ops.on_route = self._hear

    def _hear(self, logits: Tensor, chosen: int) -> None:
        if self._text is None or len(self._text) != len(logits):  # of a pass without a listener
            return
        if self._decoder.training:
            # Compute this even without a listener: a recomputed layer must repeat exactly the same
            # operations.
            loss = load_balance(logits, chosen, self._text)
            if self._losses is not None:
                self._losses.append(loss)
        if self._losses is None:  # a layer recomputed after its pass
            return
        layer = self._moe_layers[self._heard % len(self._moe_layers)]
        self._heard += 1
        if self._counts is not None:
            counts = assignments(logits, chosen, self._text)
            self._counts[layer] = self._counts.get(layer, 0) + counts

    @contextmanager
    def listening(self, targets: Tensor) -> Iterator[list[Tensor]]:
        """A list that receives the balance losses of a training pass, layer by layer. targets:
        those of the pass, int64 (rows, length).
        """
        self._losses, self._heard = [], 0
        self._text = before_padding(targets).flatten() if self._moe_layers else None
        try:
            yield self._losses
        finally:
            self._losses = None

    @contextmanager
    def counting(self) -> Iterator[dict[int, Tensor]]:
        """A dictionary that receives the number of tokens per expert of each layer, over the passes
        within `listening`, without padding.
        """
        self._counts = {}
        try:
            yield self._counts
        finally:
            self._counts = None


def shares(counts: dict[int, Tensor]) -> dict[str, list[float]]:
    """Each expert's share of assignments, by the number of the layer."""
    return {
        str(layer): [round(share, 4) for share in (count / count.sum()).tolist()]
        for layer, count in counts.items()
    }
