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


def load_balance(logits: Tensor, chosen: int) -> Tensor:
    """experts * sum over experts of (share of assignments) * (mean probability); 1 when both are
    even.

    logits (tokens, experts). Fedus et al. 2021, equations 4 to 6, https://arxiv.org/abs/2101.03961,
    with `chosen` experts per token. Only the probabilities carry a gradient. Every token counts,
    padding too: packed conversations leave little of it. On several processes
    the shares cover the tokens of all, so the mean of their losses is the loss of all tokens.
    """
    experts = logits.shape[-1]
    share = assignments(logits, chosen)
    if dist.is_initialized():
        dist.all_reduce(share)
    share = share / share.sum()
    return experts * (share * F.softmax(logits.float(), dim=-1).mean(0)).sum()


def assignments(logits: Tensor, chosen: int) -> Tensor:
    """Float32 (experts,): how many tokens of logits (tokens, experts) choose each expert."""
    choices, experts = logits.topk(chosen, dim=-1).indices.flatten(), logits.shape[-1]
    if choices.device.type == "cpu":
        return choices.bincount(minlength=experts).float()
    # bincount would wait for the device.
    counts = choices.new_zeros(experts, dtype=torch.int32)
    return counts.scatter_add_(0, choices, torch.ones_like(choices, dtype=torch.int32)).float()


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
        self._targets: Tensor | None = None
        self._heard = 0  # routers seen since listening began
        assert isinstance(decoder.ops, Training)
        decoder.ops.on_route = self._hear

    def _hear(self, logits: Tensor, chosen: int) -> None:
        if self._decoder.training:
            # Compute this even without a listener: a recomputed layer must repeat exactly the same
            # operations.
            loss = load_balance(logits, chosen)
            if self._losses is not None:
                self._losses.append(loss)
        if self._targets is None:  # a layer recomputed after its pass
            return
        layer = self._moe_layers[self._heard % len(self._moe_layers)]
        self._heard += 1
        if self._counts is not None:
            text = before_padding(self._targets).flatten()
            counts = assignments(logits[text], chosen)
            self._counts[layer] = self._counts.get(layer, 0) + counts

    @contextmanager
    def listening(self, targets: Tensor) -> Iterator[list[Tensor]]:
        """A list that receives the balance losses of a training pass, layer by layer. targets:
        those of the pass, int64 (rows, length).
        """
        self._losses, self._targets, self._heard = [], targets, 0
        try:
            yield self._losses
        finally:
            self._losses = self._targets = None

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
