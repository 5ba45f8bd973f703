"""What training will take of the memory, before it takes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ossia.checkpoint.load import DENSE_DTYPES
from ossia.checkpoint.memory import available_memory, format_size
from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    LayerNorm,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    SwiGLU,
)
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.train import lora
from ossia.train.lora import LoRA
from ossia.train.loss import CHUNK
from ossia.train.quantized import expert_names
from ossia.train.settings import Training

_FLOAT = 4  # bytes
_ACTIVATED = {GELU: 2, SwiGLU: 4, ClampedSwiGLU: 7}  # numbers kept for each hidden unit


@dataclass(frozen=True)
class Estimate:
    """Bytes, at the moment of a step when there are most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {format_size(size)}" for name, size in vars(self).items())
        return f"about {format_size(self.total)} of memory ({parts})"

    def refuse_more_than_there_is(self) -> None:
        """Raise OssiaError if the system says that so much is not free."""
        free = available_memory()
        if free is not None and self.total > free:
            raise OssiaError(
                f"training needs {self}, and {format_size(free)} are free: use --recompute, fewer "
                "rows at a time (--batch-size, --accumulate), a shorter --length or a smaller model"
            )


def layers(config: ModelConfig, tokens: int, *, recompute: bool) -> int:
    """Bytes that the layers keep of so many tokens for the gradient, in float32: what torch keeps
    for each operation of `ops.training`, to a tenth or so.
    """
    kept = [_layer(config, i) for i in range(len(config.layers))]
    inputs = config.hidden_size * len(kept)
    return _FLOAT * tokens * (inputs + max(kept) if recompute else sum(kept))


def loss(config: ModelConfig, tokens: int) -> int:
    """Bytes at work in the loss: the last norm and its gradient, and of a chunk the logits, their
    gradients and a copy.
    """
    logits = min(tokens * config.vocab_size, max(CHUNK, config.vocab_size))
    return _FLOAT * (4 * tokens * config.hidden_size + 3 * logits)


def _layer(config: ModelConfig, index: int) -> int:
    """Numbers kept for a token in one layer."""
    layer, hidden = config.layers[index], config.hidden_size
    norm = (1 if isinstance(config.norm, LayerNorm) else 2) * hidden
    kept = 2 * (norm + hidden) + _attention(layer.attention)
    match layer.feedforward:
        case MLPConfig() as mlp:
            return kept + _ACTIVATED[type(mlp.activation)] * mlp.intermediate_size
        case MoEConfig() as moe:
            inner = _ACTIVATED[type(moe.activation)] * moe.intermediate_size
            # The chosen token's copies: sorted in, sorted out, weighted.
            return kept + moe.experts_per_token * (inner + 3 * hidden)


def _attention(config: AttentionConfig) -> int:
    """Queries, keys, values and the result; before QK-norm and within it two more of the first."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return 2 * queries + 2 * keys + (2 * (queries + keys) if config.qk_norm else 0)


def full(config: ModelConfig, settings: Training) -> Estimate:
    """Of training all weights with AdamW, in float32."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in Decoder(config).named_parameters()}
    total = sum(sizes.values())
    rounded = sum(sizes[name] for name in expert_names(config)) if settings.mxfp4_steps else 0
    tokens = settings.batch_size * settings.length // settings.accumulate
    return Estimate(
        weights=_FLOAT * total,
        gradients=_FLOAT * (total + config.vocab_size * config.hidden_size),
        optimizer=2 * _FLOAT * total,
        activations=layers(config, tokens, recompute=settings.recompute)
        + loss(config, tokens)
        + _FLOAT * rounded,
    )


def adapters(stored: ModelConfig, settings: Training, learned: LoRA) -> Estimate:
    """Of training low-rank updates: the matrices stay as they lie, packed or not, and all else is
    float32.
    """
    with torch.device("meta"):
        decoder = Decoder(stored)
    matrices = dict(lora.adaptable(decoder, learned.targets))
    width = DENSE_DTYPES[stored.dtype].itemsize
    kept = {f"{name}.{part}" for name in matrices for part in ("weight", "blocks", "scales")}
    sizes = {
        name: value.numel() * (width if name in kept else _FLOAT)
        if value.is_floating_point()
        else value.nbytes
        for name, value in decoder.state_dict().items()
    }
    shapes = [lora.base_of(module).shape for module in matrices.values()]
    trained = sum(math.prod(lead) * learned.rank * (r + c) for *lead, r, c in shapes)
    tokens = settings.batch_size * settings.length // settings.accumulate
    return Estimate(
        weights=sum(sizes.values()) + _FLOAT * trained,
        gradients=_FLOAT * trained,
        optimizer=2 * _FLOAT * trained,
        activations=layers(stored, tokens, recompute=settings.recompute) + loss(stored, tokens),
    )
