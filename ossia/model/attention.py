"""Attention of one layer: grouped heads, QK-norm, windows and sinks, over whole rows or pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia.config import AttentionConfig, ModelConfig, Role
from ossia.model.context import Context
from ossia.model.linear import Linear, project
from ossia.model.norm import build_norm
from ossia.ops import AttentionSpec, Backend, Norm
from ossia.ops.paged import LayerKind


def layer_kind(config: AttentionConfig) -> LayerKind:
    """The kind of a layer; layers of one kind share page tables."""
    return LayerKind(config.window, config.num_kv_heads, config.head_dim)


class Attention(nn.Module):
    """x (batch, length, hidden), or packed (tokens, hidden) over pages, normalised -> the same
    shape, plus the residual.
    """

    def __init__(self, model: ModelConfig, index: int, ops: Backend) -> None:
        super().__init__()
        config = model.layers[index].attention
        self.config, self.index, self.ops = config, index, ops
        self.dropout = model.dropout.attention
        hidden, bias = model.hidden_size, config.bias
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q = Linear((hidden, queries), Role.QUERY, bias, ops)
        self.k = Linear((hidden, keys), Role.KEY, bias, ops)
        self.v = Linear((hidden, keys), Role.VALUE, bias, ops)
        self.o = Linear((queries, hidden), Role.ATTENTION_OUTPUT, bias, ops)
        self.q_norm = build_norm(model.norm, config.head_dim, ops) if config.qk_norm else None
        self.k_norm = build_norm(model.norm, config.head_dim, ops) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.sinks else None

    def forward(
        self, x: Tensor, norm: Norm, context: Context, residual: Tensor | None = None
    ) -> Tensor:
        config = self.config
        heads = (*x.shape[:-1], -1, config.head_dim)
        q, k, v = (y.view(heads) for y in project(x, norm, self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.ops.norms((q, k), (self.q_norm.value, self.k_norm.value))
        spec = AttentionSpec(config.window, self.sinks, self.dropout if self.training else 0.0)
        rope = context.rope.get(config.head_dim)
        out = self.ops.attention(q, k, v, spec, context.layer(self.index), rope)
        return self.o(out.flatten(-2), residual)
