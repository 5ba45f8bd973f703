"""Collects what an observed pass shows: one piece per chunk, in memory that does not grow with the
square of the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, ModelConfig, MoEConfig
from ossia.insight.xray.attention import NEAR, Look, Thumbnails, blocks, masses
from ossia.insight.xray.clamp import Clamps
from ossia.ops import AttentionSpec, Backend, ExpertWeights, Routing


@dataclass(frozen=True)
class Shape:
    """What the arrays of a model's trace are as large as. chosen and experts are the largest of all
    layers, 0 without experts.
    """

    layers: int
    heads: int
    chosen: int
    experts: int

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        moes = [x.feedforward for x in config.layers if isinstance(x.feedforward, MoEConfig)]
        return cls(
            len(config.layers),
            max(layer.attention.num_heads for layer in config.layers),
            max((moe.experts_per_token for moe in moes), default=0),
            max((moe.num_experts for moe in moes), default=0),
        )


def near_of(config: ModelConfig) -> int:
    """The positions that count as near: the widest window of the sliding layers, else 128."""
    windows = [x.attention.window for x in config.layers if x.attention.window is not None]
    return max(2, max(windows)) if windows else NEAR


@dataclass
class Piece:
    """What a chunk of tokens shows; see `Trace` for the arrays of the same names."""

    token_mass: Tensor
    experts: Tensor
    expert_weights: Tensor
    stream_norm: Tensor
    attention_norm: Tensor
    feedforward_norm: Tensor
    stream_max: Tensor
    stream_max_dim: Tensor
    stream_median: Tensor
    clamp_change: Tensor

    @classmethod
    def empty(cls, shape: Shape, tokens: int) -> Piece:
        def nans(*sizes: int) -> Tensor:
            return torch.full(sizes, torch.nan)

        layers = shape.layers
        return cls(
            token_mass=nans(layers, tokens, Look.REPEAT),
            experts=torch.full((layers, tokens, shape.chosen), -1, dtype=torch.int32),
            expert_weights=nans(layers, tokens, shape.chosen),
            stream_norm=nans(layers + 1, tokens),
            attention_norm=nans(layers, tokens),
            feedforward_norm=nans(layers, tokens),
            stream_max=nans(layers + 1, tokens),
            stream_max_dim=torch.zeros(layers + 1, tokens, dtype=torch.int32),
            stream_median=nans(layers + 1, tokens),
            clamp_change=nans(layers, tokens),
        )


class Collector:
    """An Observer of a text that is read chunk by chunk: `begin` each, then `piece` holds it.

    maps: (layer, head) whose attention is kept whole. rows: positions, int64, ascending, whose
    residual stream is kept for the lens. clamps: what measures the clamp, None to leave it out.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: Backend,
        *,
        maps: frozenset[tuple[int, int]] = frozenset(),
        rows: Tensor | None = None,
        thumbnails: Thumbnails | None = None,
        clamps: Clamps | None = None,
    ) -> None:
        self.shape, self.near = Shape.of(config), near_of(config)
        self.thumbnails, self.clamps = thumbnails, clamps
        self.head_mass = torch.full((self.shape.layers, self.shape.heads, len(Look)), torch.nan)
        self.maps: dict[tuple[int, int], list[tuple[int, int, Tensor]]] = {key: [] for key in maps}
        self.streams: list[list[Tensor]] = [[] for _ in range(self.shape.layers + 1)]
        self.piece = Piece.empty(self.shape, 0)
        self._ops, self._rows = ops, rows
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._before = torch.empty(0)
        self._start = 0
        self._embedded: Tensor | None = None

    def begin(self, tokens: Tensor) -> None:
        """The next tokens of the text, int64 (count,), are about to be read."""
        self._start = len(self._tokens)
        self._tokens = torch.cat([self._tokens.to(tokens.device), tokens])
        self.piece = Piece.empty(self.shape, len(tokens))

    def stream(self, index: int, x: Tensor) -> None:
        piece, wide = self.piece, x.float()
        size = wide.abs()
        largest = size.max(-1)
        piece.stream_norm[index] = wide.norm(dim=-1)
        piece.stream_max[index] = wide.gather(-1, largest.indices[:, None])[:, 0]
        piece.stream_max_dim[index] = largest.indices
        piece.stream_median[index] = size.median(-1).values
        if index:
            piece.feedforward_norm[index - 1] = (wide - self._before).norm(dim=-1)
        self._before = wide
        if self._rows is not None:
            if index == 0:  # GPT-2 adds its positions to the token's embedding, and shows both
                self.streams[0] = self.streams[0][: len(self.streams[-1])]
            mine = self._rows[(self._rows >= self._start) & (self._rows < self._start + len(x))]
            self.streams[index].append(x[mine - self._start].clone())

    def halfway(self, layer: int, x: Tensor) -> None:
        wide = x.float()
        self.piece.attention_norm[layer] = (wide - self._before).norm(dim=-1)
        self._before = wide

    def attention(self, layer: int, q: Tensor, k: Tensor, spec: AttentionSpec) -> None:
        heads = q.shape[1]
        sums = self.head_mass[layer, :heads].nan_to_num()
        for block in blocks(q, k, spec, len(self._tokens)):
            mass = masses(block, self._tokens, self.near)
            sums += mass.sum(1).cpu()
            at = block.start - self._start
            own = slice(at, at + mass.shape[1])
            self.piece.token_mass[layer, own] = mass[..., : Look.REPEAT].mean(0).cpu()
            if self.thumbnails is not None:
                self.thumbnails.add(layer, block)
            for head in range(heads):
                if (kept := self.maps.get((layer, head))) is not None:
                    weights = block.weights[head].half().cpu()
                    kept.append((block.start, block.oldest, weights))
        self.head_mass[layer, :heads] = sums

    def gated(self, layer: int, gate: Tensor, up: Tensor, activation: ClampedSwiGLU) -> None:
        if self.clamps is not None:
            self.clamps.count(layer, gate, up, activation)

    def experts(self, layer: int, x: Tensor, routing: Routing, experts: ExpertWeights) -> None:
        chosen = routing.experts.shape[1]
        self.piece.experts[layer, :, :chosen] = routing.experts
        self.piece.expert_weights[layer, :, :chosen] = routing.weights
        if self.clamps is not None and isinstance(experts.activation, ClampedSwiGLU):
            self.clamps.sample(layer, x, routing, experts)
            plain = replace(experts, activation=self.clamps.unclamped(experts.activation))
            free = self._ops.moe(x, routing, plain, dtype=torch.float32)
            cut = self._ops.moe(x, routing, experts, dtype=torch.float32)
            self.piece.clamp_change[layer] = (free - cut).norm(dim=-1) / cut.norm(dim=-1)

    def map(self, key: tuple[int, int], length: int) -> Tensor:
        """float16 (length, length): the probabilities of a head that was asked for."""
        out = torch.zeros(length, length, dtype=torch.float16)
        for start, oldest, weights in self.maps[key]:
            rows, keys = weights.shape
            out[start : start + rows, oldest : oldest + keys] = weights
        return out
