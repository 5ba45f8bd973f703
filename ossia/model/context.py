"""The inputs of every layer in one pass, besides the hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.ops.backend import Where
from ossia.ops.paged import PagedKV
from ossia.ops.values import Documents, RopeTable


@dataclass(frozen=True)
class Context:
    """One pass: the positions of its tokens and what they can see.

    positions: int64, (length,) or (batch, length); (tokens,) over pages. rope: the rotation table
    for each head_dim among the layers; empty without RoPE. where: the pages of keys and values, or
    the documents packed in each row, or None for whole rows.
    """

    positions: Tensor
    rope: Mapping[int, RopeTable]
    where: Documents | PagedKV | None

    def layer(self, index: int) -> Where:
        """`where`, as layer `index` sees it."""
        return self.where.layer(index) if isinstance(self.where, PagedKV) else self.where


def positions_within(documents: Tensor) -> Tensor:
    """int64 (batch, length): the distance of each token from the first of its document. `documents`
    numbers the documents; each is contiguous in its row.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents.diff(dim=1) != 0
    return places - torch.where(begins, places, 0).cummax(dim=1).values
