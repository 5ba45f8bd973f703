"""The one transformer for any ModelConfig: tokens to logits, over whole rows or pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ossia.config import LearnedPositions, ModelConfig, Role, RoPE
from ossia.errors import OssiaError
from ossia.model.attention import Attention, layer_kind
from ossia.model.context import Context, positions_within
from ossia.model.feedforward import MLP, build_feedforward
from ossia.model.linear import Experts, Linear, Weighted
from ossia.model.norm import LayerNorm, RMSNorm, build_norm
from ossia.ops import REFERENCE, Backend, Documents
from ossia.ops.int8 import Int8
from ossia.ops.paged import LayerKind, PagedKV
from ossia.ops.weight import ExpertsKind


def _check_ids(tokens: object, shape: str) -> None:
    if not isinstance(tokens, Tensor):
        raise OssiaError(f"tokens are an int64 tensor {shape}, not {type(tokens).__name__}")
    if tokens.dtype not in (torch.int64, torch.int32) or tokens.dim() != 1 + shape.count(", "):
        found = f"{str(tokens.dtype).removeprefix('torch.')} {tuple(tokens.shape)}"
        raise OssiaError(f"tokens are an int64 tensor {shape}, not {found}")


class Embedding(nn.Module):
    """int64 ids (...) -> (..., hidden), plus the residual."""

    def __init__(self, count: int, hidden_size: int, ops: Backend) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(count, hidden_size))

    def forward(self, ids: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.ops.embed(ids, self.weight, residual=residual)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Part of a layer, compiled once for all layers of one form and for each shape of its input."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(function, fullgraph=True)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)).

    recompute: keep only the layer's input, and recompute the layer in the backward pass (Chen et
    al. 2016, https://arxiv.org/abs/1604.06174). compiled: see `Decoder.compile_layers`.
    """

    def __init__(self, model: ModelConfig, index: int, ops: Backend) -> None:
        super().__init__()
        hidden = model.hidden_size
        self.ops, self.dropout = ops, model.dropout.residual
        self.recompute = self.compiled = False
        self.attention_norm = build_norm(model.norm, hidden, ops)
        self.attention = Attention(model, index, ops)
        self.feedforward_norm = build_norm(model.norm, hidden, ops)
        self.feedforward = build_feedforward(model.layers[index].feedforward, hidden, ops)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, x, context, use_reentrant=False)
        return self._run(x, context)

    def _run(self, x: Tensor, context: Context) -> Tensor:
        attend, feed = Layer._attend, Layer._feed
        if self.compiled and torch.is_grad_enabled():
            attend = _compiled(attend)
            feed = _compiled(feed) if isinstance(self.feedforward, MLP) else feed
        return feed(self, attend(self, x, context))

    def _attend(self, x: Tensor, context: Context) -> Tensor:
        return self._add(x, self.attention, self.attention_norm.value, context)

    def _feed(self, x: Tensor) -> Tensor:
        return self._add(x, self.feedforward, self.feedforward_norm.value)

    def _add(self, x: Tensor, branch: nn.Module, *inputs: object) -> Tensor:
        """x + branch(x, *inputs), of which the first is the norm of x; the branch itself adds x at
        its end, unless dropout comes first.
        """
        if self.dropout and self.training:
            return x + F.dropout(self.ops.reduce(branch(x, *inputs)), self.dropout)
        return branch(x, *inputs, residual=x)


class Decoder(nn.Module):
    """GPT-2, Qwen3, gpt-oss, or any other composition of the config.

    State is an argument: over whole rows a call is a plain causal pass, as in training; with a
    PagedKV it appends to the pages and attends over them.

    origin: the checkpoint folder that it was loaded from, if any.
    """

    origin: Path | None = None

    def __init__(self, config: ModelConfig, ops: Backend = REFERENCE) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        hidden = config.hidden_size
        self.embedding = Embedding(config.vocab_size, hidden, ops)
        learned = isinstance(config.position, LearnedPositions)
        self.positions = Embedding(config.context_length, hidden, ops) if learned else None
        self.layers = nn.ModuleList(Layer(config, i, ops) for i in range(len(config.layers)))
        self.norm = build_norm(config.norm, hidden, ops)
        self.unembedding = None if config.tied_embeddings else self._unembedding()

    @classmethod
    def assembled(
        cls, config: ModelConfig, weights: Mapping[str, Tensor], ops: Backend = REFERENCE
    ) -> Self:
        """A decoder over these tensors, by parameter name, without copies unless the backend's
        `place` makes one.
        """
        with torch.device("meta"):
            decoder = cls(config, ops)
        decoder.load_state_dict(weights, assign=True)
        decoder.place()
        return decoder

    def place(self) -> None:
        """Let the backend change the layout of each weight, once all are loaded."""
        for name, module in self.named_modules():
            if isinstance(module, Weighted):
                module.place(name, self.ops)

    def on(self, ops: Backend, config: ModelConfig | None = None) -> Self:
        """A decoder over the same weights that runs on another backend; nothing is copied.

        config: one that differs from this one's only where no weight is added, such as in windows,
        or in sinks that it lacks.
        """
        with torch.device("meta"):
            other = type(self)(config or self.config, ops)
            if self.is_int8 and other.unembedding is None:
                other.unembedding = other._unembedding()
        for name, module in other.named_modules():
            source = self.get_submodule(name)
            if isinstance(module, Weighted) and isinstance(source, Weighted):
                module.replace(source.value)
            for key, parameter in source.named_parameters(recurse=False):
                if key in dict(module.named_parameters(recurse=False)):
                    module.register_parameter(key, parameter)
        other.origin = self.origin
        return other.train(self.training)

    def recompute_layers(self) -> None:
        """Trade time for memory in training; see Layer."""
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.recompute = True

    def compile_layers(self, compiled: bool = True) -> None:
        """Have torch.compile fuse what lies between the products of layers, in passes with a
        gradient. A mixture of experts runs as it is: its operations have kernels.
        """
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.compiled = compiled

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer, in order, as PagePool takes them."""
        return tuple(layer_kind(layer.attention) for layer in self.config.layers)

    @property
    def fetches_experts(self) -> bool:
        """Whether a pass fetches experts from elsewhere, such as from disk."""
        experts = (module for module in self.modules() if isinstance(module, Experts))
        return any(isinstance(module.value, ExpertsKind) for module in experts)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the dense weights."""
        return self.embedding.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        where: Documents | PagedKV | None = None,
    ) -> Tensor:
        """Float32 logits of the token after each one; arguments as for `context`.

        tokens: int64 (batch, length) -> (batch, length, vocab), or packed (total,) over pages ->
        (total, vocab). Raises OssiaError for tokens of another type or number of dimensions, and
        IndexError for an id outside the vocabulary.
        """
        _check_ids(tokens, "(total,)" if isinstance(where, PagedKV) else "(batch, length)")
        return self.unembed(self.hidden_states(tokens, self.context(tokens, positions, where)))

    def context(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        where: Documents | PagedKV | None = None,
    ) -> Context:
        """The inputs of all layers in a pass over these tokens.

        where: None for whole rows; Documents for rows of several texts, whose positions start at
        the first token of each; or a PagedKV for tokens and positions (total,) of sequences packed
        one after another. Raises ValueError for more tokens than there are learned positions.
        """
        if positions is None:
            if isinstance(where, PagedKV):
                raise ValueError("positions must be given with a PagedKV")
            length, most = tokens.shape[-1], self.config.context_length
            if self.positions is not None and length > most:
                raise ValueError(f"{length} tokens exceed the {most} learned positions")
            positions = torch.arange(length, device=tokens.device)
            if where is not None:
                positions = positions_within(where.ids)
        rope = self.config.position
        sizes = dict.fromkeys(layer.attention.head_dim for layer in self.config.layers)
        tables = (
            {size: self.ops.rope_table(positions, rope, size) for size in sizes}
            if isinstance(rope, RoPE)
            else {}
        )
        return Context(positions, tables, where)

    def hidden_states(self, tokens: Tensor, context: Context) -> Tensor:
        """The normalised output of the last layer, (..., hidden), for `unembed`."""
        x = self._embed(tokens, context)
        with self.ops.reading(context.where):
            for layer in self.layers:
                x = layer(x, context)
        return self.norm(x)

    def _embed(self, tokens: Tensor, context: Context) -> Tensor:
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(context.positions, residual=x)
        if self.training and self.config.dropout.embedding:
            x = F.dropout(x, self.config.dropout.embedding)
        return x

    def unembed(self, hidden: Tensor) -> Tensor:
        """Float32 logits (..., vocab) of hidden states (..., hidden)."""
        weight = self.embedding.weight if self.unembedding is None else self.unembedding.value
        return self.ops.linear(hidden, weight, dtype=torch.float32)

    def untie(self) -> Linear:
        """The unembedding as a module of its own. A tied one still shares the embedding's tensor
        until it is replaced.
        """
        if self.unembedding is None:
            with torch.device("meta"):
                self.unembedding = self._unembedding()
            self.unembedding.replace(self.embedding.weight)
        return self.unembedding

    @torch.no_grad()
    def to_int8(self) -> None:
        """Quantize the matrices of attention and MLPs and the unembedding to int8, in place.

        Biases, norms, routers, experts and the embedding look-up do not change; a tied unembedding
        becomes a quantized copy. Afterwards the model cannot be trained or saved. Raises
        ValueError, naming the matrix, for NaN or infinity.
        """
        self.untie()
        for name, module in self.named_modules():
            if isinstance(module, Linear) and module.role is not Role.ROUTER:
                dense = module.value
                assert isinstance(dense, Tensor)
                try:
                    module.replace(self.ops.quantize(dense))
                except ValueError as error:
                    raise ValueError(f"{name}.weight: {error}") from error

    @property
    def is_int8(self) -> bool:
        """Whether `to_int8` has been called."""
        return self.unembedding is not None and isinstance(self.unembedding.value, Int8)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise as GPT-2: normal weights of `init_std`, zero biases, norms of one.

        Matrices that write to the residual stream are scaled by 1/sqrt(2 layers), so that its
        variance does not grow with depth (Radford et al. 2019, section 2.3). Raises ValueError for
        packed experts: MXFP4 is quantized from trained weights, not initialised.
        """
        for name, buffer in self.named_buffers():
            raise ValueError(f"{name} is packed ({buffer.dtype}); train with dense experts")
        residual = 1 / math.sqrt(2 * len(self.layers))
        for module in self.modules():
            writes_residual = isinstance(module, Weighted) and module.role.writes_residual
            std = self.config.init_std * (residual if writes_residual else 1.0)
            for name, parameter in module.named_parameters(recurse=False):
                if name in ("bias", "sinks"):
                    parameter.zero_()
                elif isinstance(module, LayerNorm | RMSNorm):
                    parameter.fill_(1)
                else:
                    parameter.normal_(0, std, generator=generator)

    def _unembedding(self) -> Linear:
        shape = self.config.hidden_size, self.config.vocab_size
        return Linear(shape, Role.UNEMBEDDING, False, self.ops)
