"""The load-balancing loss that keeps a router from sending every token to the same few experts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ossia.config import ModelConfig, MoEConfig


def load_balance(logits: Tensor, chosen: int) -> Tensor:
    """experts * sum over experts of (share of assignments) * (mean probability); 1 when both are
    even.

    logits (tokens, experts). Fedus et al. 2021, equations 4 to 6, https://arxiv.org/abs/2101.03961,
    with `chosen` experts a token. The shares carry no gradient, the probabilities do.
    """
    experts = logits.shape[-1]
    picked = logits.topk(chosen, dim=-1).indices.flatten()
    share = picked.bincount(minlength=experts) / len(picked)
    return experts * (share * F.softmax(logits.float(), dim=-1).mean(0)).sum()


class RouterLog:
    """Listens to the routers of a decoder in training and sums up their balance, layer by layer."""

    def __init__(self, decoder: nn.Module, config: ModelConfig) -> None:
        self._losses: list[Tensor] = []
        for i, layer in enumerate(config.layers):
            if isinstance(layer.feedforward, MoEConfig):
                router = decoder.get_submodule(f"layers.{i}.feedforward.router")
                router.register_forward_hook(self._listen(layer.feedforward.experts_per_token))

    def _listen(self, chosen: int):
        def hook(router: nn.Module, args: tuple, logits: Tensor) -> None:
            if router.training:
                self._losses.append(load_balance(logits.flatten(0, -2), chosen))

        return hook

    def take(self) -> Tensor | None:
        """The mean loss over the layers since the last call; None for a model without experts."""
        losses, self._losses = self._losses, []
        return sum(losses[1:], losses[0]) / len(losses) if losses else None
