"""Attention of one layer: grouped heads, QK-norm, windows and sinks, over a batch or over pages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ossia.config import AttentionConfig, ModelConfig
from ossia.model.linear import Linear, project
from ossia.model.norm import build_norm
from ossia.ops import Backend
from ossia.ops.paged import LayerKind, PagedKV

Rotation = tuple[Tensor, Tensor]


def layer_kind(config: AttentionConfig) -> LayerKind:
    """What decides which pages a layer can share."""
    return LayerKind(config.window, config.num_kv_heads, config.head_dim)


class Attention(nn.Module):
    """x (batch, length, hidden), or packed (tokens, hidden) with a PagedKV, to the same shape, plus
    the residual.
    """

    def __init__(self, model: ModelConfig, index: int, ops: Backend) -> None:
        super().__init__()
        config = model.layers[index].attention
        self.config, self.index, self.ops = config, index, ops
        self.dropout = model.dropout.attention
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q = Linear(model.hidden_size, queries, config.bias, ops)
        self.k = Linear(model.hidden_size, keys, config.bias, ops)
        self.v = Linear(model.hidden_size, keys, config.bias, ops)
        self.o = Linear(queries, model.hidden_size, config.bias, ops)
        self.q_norm = build_norm(model.norm, config.head_dim, ops) if config.qk_norm else None
        self.k_norm = build_norm(model.norm, config.head_dim, ops) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.empty(config.num_heads)) if config.sinks else None

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        kv: PagedKV | None,
        documents: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        heads = (*x.shape[:-1], -1, self.config.head_dim)
        q, k, v = (y.view(heads) for y in project(x, self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if kv is None:
            if rotation is not None:
                q, k = self.ops.rotate(q, *rotation), self.ops.rotate(k, *rotation)
            dropout, window = self.dropout if self.training else 0.0, self.config.window
            out = self.ops.attention(
                q, k, v, window=window, sinks=self.sinks, dropout=dropout, documents=documents
            )
        else:
            out = self.ops.paged_attention(
                q, k, v, kv.layer(self.index), sinks=self.sinks, rotation=rotation
            )
        return self.o(out.flatten(-2), residual)
