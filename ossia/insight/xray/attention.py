"""Where attention goes: the mass of each head by what it looks at, and maps of single heads.

Probabilities exist for one block of queries at a time, so a long text costs time and not memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.ops import AttentionSpec
from ossia.ops.attention import SCORES

NEAR = 128  # positions that count as near in a model without sliding windows


class Look(IntEnum):
    """What a share of attention goes to. All but the last sum to one for each query.

    The first token is not also the query's own or the previous one. NEAR are the other keys within
    the window of the model's sliding layers, FAR those beyond it. REPEAT is the mass on tokens
    that followed an earlier occurrence of the query's token, wherever they are: what induction
    heads look at (Olsson et al. 2022, https://arxiv.org/abs/2209.11895).
    """

    SINK = 0
    FIRST = 1
    SELF = 2
    PREVIOUS = 3
    NEAR = 4
    FAR = 5
    REPEAT = 6


class Block(NamedTuple):
    """Attention of some queries. start: the position of the first of them; oldest: that of the
    first key. weights: (heads, queries, keys); sink: (heads, queries), zeros without sinks.
    """

    start: int
    oldest: int
    weights: Tensor
    sink: Tensor


def blocks(q: Tensor, k: Tensor, spec: AttentionSpec, end: int) -> Iterator[Block]:
    """The probabilities of queries (tokens, heads, head_dim), the last positions before `end`, over
    keys (keys, kv_heads, head_dim), the positions before `end` that any of them sees.
    """
    queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[:2]
    oldest = end - keys
    grouped = (q * head_dim**-0.5).view(queries, kv_heads, -1, head_dim)
    columns = k.permute(1, 2, 0)[:, None]  # (kv_heads, 1, head_dim, keys)
    step = max(1, SCORES // (heads * keys))  # as attention itself, whose copies take more
    places = torch.arange(oldest, end, device=q.device)
    for first in range(0, queries, step):
        part = grouped[first : first + step].permute(1, 2, 0, 3)
        scores = (part @ columns).view(heads, -1, keys)
        start = end - queries + first
        distance = torch.arange(start, start + scores.shape[1], device=q.device)[:, None] - places
        visible = (distance >= 0) & (distance < (end if spec.window is None else spec.window))
        scores.masked_fill_(~visible, float("-inf"))
        if spec.sinks is None:
            weights = scores.softmax(-1)
            yield Block(start, oldest, weights, weights.new_zeros(weights.shape[:2]))
        else:
            total = scores.logsumexp(-1)
            sinks = spec.sinks.float()[:, None]
            joined = torch.logaddexp(total, sinks)
            weights = scores.sub_(joined[..., None]).exp_()
            yield Block(start, oldest, weights, (sinks - joined).exp())


def masses(block: Block, tokens: Tensor, near: int) -> Tensor:
    """(heads, queries, len(Look)) of a block. tokens: int64, the text's up to the block's last
    query at least. near: the window that separates NEAR from FAR.
    """
    start, oldest, weights, sink = block
    count, keys = weights.shape[1:]
    queries = torch.arange(start, start + count, device=weights.device)
    places = torch.arange(oldest, oldest + keys, device=weights.device)
    out = weights.new_zeros(*sink.shape, len(Look))
    out[..., Look.SINK] = sink
    if oldest == 0:
        out[..., Look.FIRST] = weights[..., 0]
    for look, back in ((Look.SELF, 0), (Look.PREVIOUS, 1)):
        column = queries - back - oldest
        found = (column >= 0) & (queries - back > 0)
        columns = column.clamp(min=0).expand(len(weights), -1)[..., None]
        out[..., look] = weights.gather(-1, columns)[..., 0] * found
    later = places > 0
    distant = (queries[:, None] - places >= near) & later
    if bool(distant.any()):
        out[..., Look.FAR] = torch.einsum("hqk,qk->hq", weights, distant.to(weights.dtype))
    before = tokens[(places - 1).clamp(min=0)]
    repeats = (before == tokens[queries][:, None]) & later & (places <= queries[:, None])
    if bool(repeats.any()):
        out[..., Look.REPEAT] = torch.einsum("hqk,qk->hq", weights, repeats.to(weights.dtype))
    named = out[..., : Look.NEAR].sum(-1) + out[..., Look.FAR]
    out[..., Look.NEAR] = (1 - named).clamp(min=0)
    return out


class Thumbnails:
    """The maps of all heads of a text, reduced to at most `side` cells a side.

    A cell holds the largest probability in it, of 255: uint8 (layers, heads, cells, cells), rows of
    queries and columns of keys.
    """

    def __init__(self, shape: tuple[int, int], length: int, side: int) -> None:
        """shape: layers and heads."""
        self.size = max(1, -(-length // side))
        cells = -(-length // self.size)
        self.maps = torch.zeros(*shape, cells, cells, dtype=torch.uint8)

    def add(self, layer: int, block: Block) -> None:
        size = self.size
        heads, count, keys = block.weights.shape
        left, top = block.oldest % size, block.start % size
        across, down = -(-(left + keys) // size), -(-(top + count) // size)
        padded = block.weights.new_zeros(heads, down * size, across * size)
        padded[:, top : top + count, left : left + keys] = block.weights
        pooled = padded.view(heads, down, size, across, size).amax((2, 4))
        row, column = block.start // size, block.oldest // size
        target = self.maps[layer, :heads, row : row + down, column : column + across]
        torch.maximum(target, (pooled * 255).round().to("cpu", torch.uint8), out=target)
