"""How much a forward pass keeps for its gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def kept_bytes(module: nn.Module, *inputs: object) -> int:
    """Bytes that autograd holds between the forward pass of `module` and its backward pass, without
    the parameters. What is saved twice, or in part, counts once and whole: that is what it takes.
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # A view leads to the storage that cannot be freed for its sake.
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            held[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
