"""Every operation in readable PyTorch, on any device: what other backends are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops.mxfp4 import MXFP4, unpack
from ossia.ops.paged import LayerKV

NAME = "reference"

Weight = Tensor | MXFP4

# Elements of a packed matrix that are unpacked at a time: few enough to be used from the cache.
_UNPACKED = 1 << 20

# Scores of one block of queries, in elements: long prompts cost time, not memory.
_SCORES = 1 << 24


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (..., cols) times weight (rows, cols) transposed, plus bias (rows,) -> (..., rows)."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    rows, cols = weight.shape
    step = max(1, _UNPACKED // cols)
    parts = [F.linear(x, unpack(weight[i : i + step], x.dtype)) for i in range(0, rows, step)]
    out = torch.cat(parts, dim=-1)
    return out if bias is None else out + bias


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
) -> Tensor:
    """Causal attention with scores scaled by 1/sqrt(head_dim) and a softmax in float32 or wider.

    q (batch, queries, heads, head_dim); k, v (batch, keys, kv_heads, head_dim); the queries stand
    at the last positions of the keys. Key j is visible to a query at position i iff 0 <= i - j <
    window. `sinks` (heads,) are logits that join each softmax and whose columns are dropped
    (gpt-oss; Xiao et al. 2023, https://arxiv.org/abs/2309.17453). Returns (batch, queries, heads,
    head_dim).
    """
    batch, queries, heads, _ = q.shape
    if q.numel() == 0:
        return torch.empty_like(q)
    keys = k.shape[1]
    step = max(1, _SCORES // (batch * heads * keys))
    blocks = []
    for start in range(0, queries, step):
        block = q[:, start : start + step]
        first = keys - queries + start  # the position of the block's first query
        oldest = 0 if window is None else max(0, first - window + 1)
        seen = slice(oldest, first + block.shape[1])
        blocks.append(
            _attend(block, k[:, seen], v[:, seen], first - oldest, window, sinks, dropout)
        )
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: int,
    window: int | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention of one block of queries, the first of which stands at key `first`."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    # Query heads of one group share a key head: (batch, kv_heads, group * queries, head_dim).
    wide = torch.promote_types(q.dtype, torch.float32)
    q = (
        q.to(wide)
        .view(batch, queries, kv_heads, heads // kv_heads, head_dim)
        .permute(0, 2, 3, 1, 4)
    )
    scores = q.flatten(2, 3) @ k.to(wide).permute(0, 2, 3, 1) * head_dim**-0.5
    scores = scores.view(batch, heads, queries, keys)
    distance = torch.arange(first, first + queries, device=q.device)[:, None]
    distance = distance - torch.arange(keys, device=q.device)
    visible = (distance >= 0) & (distance < (keys if window is None else window))
    scores = scores.to(wide).masked_fill(~visible, float("-inf"))
    if sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        sink = sinks.to(wide).view(1, heads, 1, 1).expand(batch, -1, queries, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    weights = F.dropout(weights, dropout) if dropout else weights
    out = weights.view(batch, kv_heads, -1, keys) @ v.to(wide).transpose(1, 2)
    out = out.view(batch, heads, queries, head_dim).transpose(1, 2)
    return out.to(v.dtype)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: LayerKV,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Append this step's keys and values to their pages, then attend over all that each sequence
    holds.

    q (tokens, heads, head_dim); k, v (tokens, kv_heads, head_dim), packed: the tokens of the
    sequences one after another. Returns (tokens, heads, head_dim).
    """
    out = torch.empty_like(q)
    start = 0
    for table, length, count in zip(
        kv.page_table, kv.lengths.tolist(), kv.query_lengths.tolist(), strict=True
    ):
        tokens = slice(start, start + count)
        start += count
        if count == 0:
            continue
        positions = torch.arange(length - count, length, device=q.device)
        pages = table[positions // kv.page_size].long()
        kv.keys[pages, positions % kv.page_size] = k[tokens].to(kv.keys.dtype)
        kv.values[pages, positions % kv.page_size] = v[tokens].to(kv.values.dtype)
        # The pages that some query of this step can see: all, or those that reach into the window.
        oldest = 0 if window is None else max(0, length - count - window + 1)
        first = oldest // kv.page_size
        held = table[first : -(-length // kv.page_size)].long()
        base = first * kv.page_size
        seen = slice(oldest - base, length - base)
        keys = kv.keys[held].flatten(0, 1)[seen].to(q.dtype)
        values = kv.values[held].flatten(0, 1)[seen].to(q.dtype)
        attended = attention(q[None, tokens], keys[None], values[None], window=window, sinks=sinks)
        out[tokens] = attended[0]
    return out


def moe(
    x: Tensor,
    experts: Tensor,
    expert_weights: Tensor,
    gate_up: Weight,
    gate_up_bias: Tensor | None,
    down: Weight,
    down_bias: Tensor | None,
    *,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """The weighted sum of each token's chosen experts, weighted after the second bias.

    x (tokens, hidden); experts int64 and expert_weights (tokens, chosen); gate_up (experts, 2 *
    inter, hidden), its rows gate, up, gate, up, ...; down (experts, hidden, inter); biases
    (experts, rows). `clamp` is the (limit, alpha) of gpt-oss's SwiGLU, None the plain one. Packed
    weights are unpacked one expert at a time, and only those that a token chose.
    """
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in experts.unique().tolist():
        token, choice = torch.where(experts == expert)
        hidden = linear(
            x[token], gate_up[expert], None if gate_up_bias is None else gate_up_bias[expert]
        )
        gate, up = hidden[..., 0::2], hidden[..., 1::2]
        if clamp is None:
            hidden = swiglu(gate, up)
        else:
            hidden = clamped_swiglu(gate, up, limit=clamp[0], alpha=clamp[1])
        hidden = linear(hidden, down[expert], None if down_bias is None else down_bias[expert])
        out.index_add_(0, token, hidden.float() * expert_weights[token, choice, None].float())
    return out.to(x.dtype)
