"""Causal attention over whole rows in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops.values import AttentionSpec

# Scores of one block of queries, in elements: long prompts cost time, not memory.
SCORES = 1 << 24


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, documents: Tensor | None = None
) -> Tensor:
    """Scores scaled by 1/sqrt(head_dim), softmax in float32 or wider.

    q (batch, queries, heads, head_dim); k, v (batch, keys, kv_heads, head_dim); the queries are the
    last positions of the keys. `documents` (batch, keys) numbers the texts packed in a row: a query
    sees only the keys of its own text. Sinks are those of gpt-oss (Xiao et al. 2023,
    https://arxiv.org/abs/2309.17453). Returns (batch, queries, heads, head_dim).
    """
    batch, queries, heads, head_dim = q.shape
    if q.numel() == 0:
        return torch.empty_like(q)
    dtype, keys, window = q.dtype, k.shape[1], spec.window
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide) * head_dim**-0.5, k.to(wide), v.to(wide)
    step = max(1, SCORES // (batch * heads * keys))
    blocks = []
    for start in range(0, queries, step):
        block = q[:, start : start + step]
        first = keys - queries + start  # the position of the block's first query
        oldest = 0 if window is None else max(0, first - window + 1)
        seen = slice(oldest, first + block.shape[1])
        own = None if documents is None else documents[:, seen]
        blocks.append(_attend(block, k[:, seen], v[:, seen], first - oldest, spec, own))
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return out.to(dtype)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: int,
    spec: AttentionSpec,
    documents: Tensor | None,
) -> Tensor:
    """Attention of a block of scaled queries over the keys that any of them can see. The first
    query has the position of key `first`.
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    # The query heads of a group share a key head: (batch, kv_heads, group * queries, head_dim).
    grouped = q.view(batch, queries, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (grouped @ k.permute(0, 2, 3, 1)).view(batch, heads, queries, keys)
    if queries > 1:  # a single query sees all of its keys
        distance = torch.arange(first, first + queries, device=q.device)[:, None]
        distance = distance - torch.arange(keys, device=q.device)
        visible = (distance >= 0) & (distance < (keys if spec.window is None else spec.window))
        scores = scores.masked_fill(~visible, float("-inf"))
    if documents is not None:
        same = documents[:, first : first + queries, None] == documents[:, None]
        scores = scores.masked_fill(~same[:, None], float("-inf"))
    if spec.sinks is None:
        weights = scores.softmax(dim=-1)
    else:  # the sink joins the softmax, after scale and mask, and its column is dropped
        sink = spec.sinks.to(scores.dtype).view(1, heads, 1, 1).expand(batch, -1, queries, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    weights = F.dropout(weights, spec.dropout) if spec.dropout else weights
    out = weights.view(batch, kv_heads, -1, keys) @ v.transpose(1, 2)
    return out.view(batch, heads, queries, head_dim).transpose(1, 2)
