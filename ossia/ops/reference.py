"""Every operation in readable PyTorch, on any device: what other backends are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops import low_rank
from ossia.ops.int8 import Int8, dequantize
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.paged import LayerKV

NAME = "reference"

Stack = Tensor | MXFP4  # the matrices of a layer's experts
Weight = Stack | Int8 | LowRank
Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32 (..., tokens, head_dim/2)

# Elements of an int8 matrix that are unpacked at a time: few enough to be used from the cache.
_UNPACKED = 1 << 20

# Scores of one block of queries, in elements: long prompts cost time, not memory.
_SCORES = 1 << 24


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x (..., cols) times weight (rows, cols) transposed, plus bias (rows,), plus residual
    (..., rows) -> (..., rows) of `dtype`, x's own if None.
    """
    out = _linear(x, weight, bias)
    out = out if residual is None else residual + out
    return out if dtype is None else out.to(dtype)


def linears(
    x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """`linear` of the same x by each weight and its bias."""
    return tuple(_linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def _linear(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if isinstance(weight, LowRank):
        out = low_rank.linear(x, weight)
    elif isinstance(weight, MXFP4):
        out = low_rank.frozen_linear(x, weight)
    else:
        out = _int8_linear(x, weight)
    return out if bias is None else out + bias


def _int8_linear(x: Tensor, weight: Int8) -> Tensor:
    """Products in float32: a weight's value is not one of bfloat16."""
    rows, cols = weight.shape
    step = max(1, _UNPACKED // cols)
    pieces = [weight[i : i + step] for i in range(0, rows, step)]
    wide = x.float()
    return torch.cat([F.linear(wide, dequantize(p)).to(x.dtype) for p in pieces], dim=-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., hidden), normalised to mean 0 and variance 1; Ba et al. 2016,
    https://arxiv.org/abs/1607.06450.
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool) -> Tensor:
    """x (..., hidden) over its root mean square, in float32, times weight.

    `round_before_weight` casts to x's dtype before the multiplication (Qwen3) rather than after it
    (gpt-oss).
    """
    normal = x.float()
    normal = normal * torch.rsqrt(normal.square().mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype) if round_before_weight else (weight * normal).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim/2) of x (..., tokens, heads, head_dim).

    cos, sin: float32 (..., tokens, head_dim/2).
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation; Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415."""
    return F.gelu(x, approximate="tanh")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    return F.silu(gate) * up


def clamped_swiglu(gate: Tensor, up: Tensor, *, limit: float, alpha: float) -> Tensor:
    """gpt-oss's SwiGLU: the gate bounded above, the factor `up` on both sides and offset by 1."""
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal attention with scores scaled by 1/sqrt(head_dim) and a softmax in float32 or wider.

    q (batch, queries, heads, head_dim); k, v (batch, keys, kv_heads, head_dim); the queries stand
    at the last positions of the keys. Key j is visible to a query at position i iff 0 <= i - j <
    window. `documents` (batch, keys) numbers the documents packed in a row: a query sees only keys
    of its own. `sinks` (heads,) are logits that join each softmax and whose columns are dropped
    (gpt-oss; Xiao et al. 2023, https://arxiv.org/abs/2309.17453). Returns (batch, queries, heads,
    head_dim).
    """
    batch, queries, heads, head_dim = q.shape
    if q.numel() == 0:
        return torch.empty_like(q)
    dtype = q.dtype
    keys = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide) * head_dim**-0.5, k.to(wide), v.to(wide)
    step = max(1, _SCORES // (batch * heads * keys))
    blocks = []
    for start in range(0, queries, step):
        block = q[:, start : start + step]
        first = keys - queries + start  # the position of the block's first query
        oldest = 0 if window is None else max(0, first - window + 1)
        seen = slice(oldest, first + block.shape[1])
        own = None if documents is None else documents[:, seen]
        blocks.append(
            _attend(block, k[:, seen], v[:, seen], first - oldest, window, sinks, dropout, own)
        )
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return out.to(dtype)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: int,
    window: int | None,
    sinks: Tensor | None,
    dropout: float,
    documents: Tensor | None,
) -> Tensor:
    """Attention of one block of scaled queries, the first of which stands at key `first`, over the
    keys that some of them can see.
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    # Query heads of one group share a key head: (batch, kv_heads, group * queries, head_dim).
    grouped = q.view(batch, queries, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (grouped @ k.permute(0, 2, 3, 1)).view(batch, heads, queries, keys)
    if queries > 1:  # a single query sees all of its keys
        distance = torch.arange(first, first + queries, device=q.device)[:, None]
        distance = distance - torch.arange(keys, device=q.device)
        visible = (distance >= 0) & (distance < (keys if window is None else window))
        scores = scores.masked_fill(~visible, float("-inf"))
    if documents is not None:
        same = documents[:, first : first + queries, None] == documents[:, None]
        scores = scores.masked_fill(~same[:, None], float("-inf"))
    if sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        sink = sinks.to(scores.dtype).view(1, heads, 1, 1).expand(batch, -1, queries, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    weights = F.dropout(weights, dropout) if dropout else weights
    out = weights.view(batch, kv_heads, -1, keys) @ v.transpose(1, 2)
    return out.view(batch, heads, queries, head_dim).transpose(1, 2)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: LayerKV,
    *,
    sinks: Tensor | None = None,
    rotation: Rotation | None = None,
) -> Tensor:
    """Append this step's keys and values to their pages, then attend over all that each sequence
    holds, or over the window of the layer's kind.

    q (tokens, heads, head_dim); k, v (tokens, kv_heads, head_dim), packed: the tokens of the
    sequences one after another. `rotation` is the cosines and sines by which q and k are turned
    first, as `rotate` does. Returns (tokens, heads, head_dim).
    """
    if q.numel() == 0:
        return torch.empty_like(q)
    if rotation is not None:
        q, k = rotate(q, *rotation), rotate(k, *rotation)
    kv.append(k, v)
    parts = []
    for queries, seen in zip(q.split(kv.tables.counts), kv.tables.seen, strict=True):
        own = [x.to(q.dtype)[None] for x in kv.read(seen)]
        parts.append(attention(queries[None], *own, window=kv.tables.window, sinks=sinks)[0])
    return torch.cat(parts)


def route(
    logits: Tensor, chosen: int, *, softmax_first: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """The `chosen` experts of each token, int64, the likeliest first, and their weights, float32,
    each (tokens, chosen); logits (tokens, experts).

    The weights are the softmax over the chosen (gpt-oss) or, with `softmax_first`, the chosen of
    the softmax over all, which `renormalize` divides by their sum (Qwen3).
    """
    logits = logits.float()
    if not softmax_first:
        top, experts = logits.topk(chosen, dim=-1)
        return experts, top.softmax(dim=-1)
    weights, experts = logits.softmax(dim=-1).topk(chosen, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return experts, weights


def moe(
    x: Tensor,
    experts: Tensor,
    expert_weights: Tensor,
    gate_up: Stack | LowRank,
    gate_up_bias: Tensor | None,
    down: Stack | LowRank,
    down_bias: Tensor | None,
    *,
    clamp: tuple[float, float] | None = None,
    residual: Tensor | None = None,
    wide: bool = False,
) -> Tensor:
    """The weighted sum of each token's chosen experts, weighted after the second bias and summed in
    float32 or wider, plus residual (tokens, hidden).

    x (tokens, hidden); experts int64 and expert_weights (tokens, chosen); gate_up (experts, 2 *
    inter, hidden), its rows gate, up, gate, up, ...; down (experts, hidden, inter); biases
    (experts, rows). `clamp` is the (limit, alpha) of gpt-oss's SwiGLU, None the plain one. Packed
    weights are unpacked one expert at a time, and only those that a token chose. `wide` leaves the
    sum as it is, rather than in x's dtype: for a caller that adds to it.
    """
    wider = torch.promote_types(x.dtype, torch.float32)
    result = wider if wide else x.dtype
    if x.numel() == 0:
        return torch.empty_like(x, dtype=result)
    # Choices sorted by expert: those of one lie together, and it reads them once.
    choices = experts.flatten()
    order = choices.argsort(stable=True)
    counts = choices.bincount(minlength=gate_up.shape[0]).tolist()
    hidden = _linear_each(x[order // experts.shape[1]], counts, gate_up, gate_up_bias)
    gate, up = hidden[..., 0::2], hidden[..., 1::2]
    if clamp is None:
        hidden = swiglu(gate, up)
    else:
        hidden = clamped_swiglu(gate, up, limit=clamp[0], alpha=clamp[1])
    out = _linear_each(hidden, counts, down, down_bias)[order.argsort()]
    out = out.view(*experts.shape, -1).to(wider) * expert_weights[..., None].to(wider)
    out = out.sum(1).to(result)
    return out if residual is None else residual + out


def _linear_each(
    x: Tensor, counts: list[int], weight: Stack | LowRank, bias: Tensor | None
) -> Tensor:
    """The first counts[0] rows of x through the first matrix and bias, the next counts[1] through
    the second, and so on.
    """
    # One `unbind`: in training each index would make a gradient of the size of the whole stack.
    weights = weight if isinstance(weight, MXFP4) else weight.unbind()
    biases = [None] * len(counts) if bias is None else bias.unbind()
    parts = x.split(counts)
    return torch.cat(
        [_linear(parts[i], weights[i], biases[i]) for i in range(len(counts)) if counts[i]]
    )
