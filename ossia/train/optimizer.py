"""The choice of the optimizer for each parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia.config import ATTENTION_ROLES, MLP_ROLES
from ossia.model.decoder import Embedding
from ossia.model.linear import Linear, Weighted
from ossia.train.settings import Optimizer, Training

_BETAS = (0.9, 0.95)
HIDDEN = ATTENTION_ROLES | MLP_ROLES  # act between hidden states


def build_optimizers(decoder: nn.Module, settings: Training) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    AdamW (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101) applies weight decay to
    matrices, not to biases, norms or sinks. Muon (Jordan 2024,
    https://kellerjordan.github.io/posts/muon) is torch's, which takes 2-D matrices; it gets those
    that map hidden states to hidden states. Embeddings, the unembedding and routers map to or from
    indices, and experts are stacked in three dimensions, so AdamW updates them. Muon's update is
    scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so one
    learning rate serves both. Frozen parameters have no optimizer.
    """
    orthogonal: list[Tensor] = []
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for module in decoder.modules():
        hidden = isinstance(module, Linear) and module.role in HIDDEN
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if not isinstance(module, Weighted | Embedding) or name == "bias":
                others.append(parameter)
            elif settings.optimizer == Optimizer.MUON and hidden:
                orthogonal.append(parameter)
            else:
                matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=_BETAS, fused=True)
    ]
    if orthogonal:
        decay = settings.weight_decay
        muon = torch.optim.Muon(
            orthogonal, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers
