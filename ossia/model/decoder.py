"""The one transformer: any ModelConfig, from tokens to logits, with or without pages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossia.config import LearnedPositions, ModelConfig, RoPE
from ossia.model.attention import Attention, Rotation, layer_kind
from ossia.model.feedforward import build_feedforward
from ossia.model.linear import Linear
from ossia.model.norm import build_norm
from ossia.model.position import positions_within, rotation
from ossia.offload.store import ExpertStore
from ossia.ops import REFERENCE, Backend
from ossia.ops.int8 import Int8
from ossia.ops.paged import LayerKind, PagedKV


class Embedding(nn.Module):
    """int64 ids (...) -> (..., hidden)."""

    def __init__(self, count: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, hidden_size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, model: ModelConfig, index: int, ops: Backend) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.dropout = model.dropout.residual
        self.attention_norm = build_norm(model.norm, hidden, ops)
        self.attention = Attention(model, index, ops)
        self.feedforward_norm = build_norm(model.norm, hidden, ops)
        self.feedforward = build_feedforward(model.layers[index].feedforward, hidden, ops)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        kv: PagedKV | None,
        documents: Tensor | None = None,
    ) -> Tensor:
        x = self._add(x, self.attention, self.attention_norm(x), rotation, kv, documents)
        return self._add(x, self.feedforward, self.feedforward_norm(x))

    def _add(self, x: Tensor, branch: nn.Module, *inputs: object) -> Tensor:
        """x + branch(*inputs); the branch adds it, at its end, unless dropout comes between."""
        if self.dropout and self.training:
            return x + F.dropout(branch(*inputs), self.dropout)
        return branch(*inputs, residual=x)


class Decoder(nn.Module):
    """GPT-2, Qwen3, gpt-oss, or what else the config composes.

    Built under `torch.device("meta")` it takes no memory, and a checkpoint's tensors become its
    parameters. State is an argument: without `kv` a call is a plain causal pass, as in training;
    with a PagedKV it appends to the pages and attends over them.
    """

    expert_store: ExpertStore | None = None  # if experts are read on demand

    def __init__(self, config: ModelConfig, ops: Backend = REFERENCE) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        hidden = config.hidden_size
        self.embedding = Embedding(config.vocab_size, hidden)
        learned = isinstance(config.position, LearnedPositions)
        self.positions = Embedding(config.context_length, hidden) if learned else None
        self.layers = nn.ModuleList(Layer(config, i, ops) for i in range(len(config.layers)))
        self.norm = build_norm(config.norm, hidden, ops)
        tied = config.tied_embeddings
        self.unembedding = None if tied else Linear(hidden, config.vocab_size, False, ops)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer, in order: what a PagePool is built from."""
        return tuple(layer_kind(layer.attention) for layer in self.config.layers)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the dense weights."""
        return self.embedding.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        kv: PagedKV | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Float32 logits of the token after each one.

        tokens: int64 (batch, length) -> (batch, length, vocab). With `kv`, tokens and positions are
        (total,), the sequences packed one after another, -> (total, vocab). Without, `documents`
        (batch, length) may number the texts packed in a row: none sees another, and positions count
        from the first token of each.
        """
        return self.unembed(self.hidden_states(tokens, positions, kv, documents))

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        kv: PagedKV | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """What `unembed` reads: the last layer's output, normalised, (..., hidden)."""
        if positions is None:
            if kv is not None:
                raise ValueError("positions must be given with a PagedKV")
            length, most = tokens.shape[-1], self.config.context_length
            if self.positions is not None and length > most:
                raise ValueError(f"{length} tokens exceed the {most} learned positions")
            positions = torch.arange(length, device=tokens.device)
            if documents is not None:
                positions = positions_within(documents)
        return self.transform(
            self.embed(tokens, positions), self.rotations(positions), kv, documents
        )

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first layer reads, (..., hidden)."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.training and self.config.dropout.embedding:
            x = F.dropout(x, self.config.dropout.embedding)
        return x

    def transform(
        self,
        x: Tensor,
        rotations: Mapping[int, Rotation],
        kv: PagedKV | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """All layers and the last norm, of what `embed` and `rotations` made."""
        for config, layer in zip(self.config.layers, self.layers, strict=True):
            x = layer(x, rotations.get(config.attention.head_dim), kv, documents)
        return self.norm(x)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Float32 logits (..., vocab) of hidden states (..., hidden)."""
        weight = (self.unembedding or self.embedding).weight
        return self.ops.linear(hidden, weight, dtype=torch.float32)

    def rotations(self, positions: Tensor) -> dict[int, Rotation]:
        """Cosines and sines for each head_dim among the layers; none without RoPE."""
        if not isinstance(self.config.position, RoPE):
            return {}
        sizes = {layer.attention.head_dim for layer in self.config.layers}
        return {size: rotation(self.config.position, size, positions) for size in sizes}

    @torch.no_grad()
    def to_int8(self) -> None:
        """Quantize the matrices of attention and MLPs and the unembedding to int8, in place.

        Biases, norms, routers, experts and the embedding look-up stay as they are; a tied
        unembedding becomes a quantized copy. The model can then no longer be trained or saved.
        Raises ValueError, naming the matrix, for one with NaN or infinity.
        """
        if self.unembedding is None:
            vocab, hidden = self.embedding.weight.shape
            with torch.device("meta"):
                self.unembedding = Linear(hidden, vocab, False, self.ops)
            self.unembedding.weight = self.embedding.weight
        for name, module in self.named_modules():
            if isinstance(module, Linear) and not name.endswith(".router"):
                try:
                    module.to_int8()
                except ValueError as error:
                    raise ValueError(f"{name}.weight: {error}") from error

    @property
    def is_int8(self) -> bool:
        """Whether `to_int8` has been called."""
        return self.unembedding is not None and isinstance(self.unembedding.weight, Int8)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Start values for training, as GPT-2's: normal of `init_std`, zero biases, norms of one.

        The matrices that write to the residual stream are scaled by 1/sqrt(2 layers), so that its
        variance does not grow with depth (Radford et al. 2019, section 2.3). Raises ValueError if
        the experts are packed: MXFP4 is quantized from trained weights, not drawn.
        """
        for name, buffer in self.named_buffers():
            raise ValueError(f"{name} is packed ({buffer.dtype}); train with dense experts")
        residual = 1 / math.sqrt(2 * len(self.layers))
        for name, parameter in self.named_parameters():
            module, _, kind = name.rpartition(".")
            if kind in ("bias", "sinks"):
                parameter.zero_()
            elif module.endswith("norm"):
                parameter.fill_(1)
            else:
                scale = residual if module.endswith((".o", ".down")) else 1.0
                parameter.normal_(0, self.config.init_std * scale, generator=generator)
