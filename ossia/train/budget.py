"""An estimate of the memory that training needs, made before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ossia.adapt import lora
from ossia.adapt.lora import LoRA
from ossia.checkpoint.load import DENSE_DTYPES
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
from ossia.insight.counts import count, expert_parameters
from ossia.model import Decoder
from ossia.ops import mxfp4, packing
from ossia.system.memory import available_memory, format_size
from ossia.train.device import CPU
from ossia.train.loss import CHUNK
from ossia.train.settings import Training

SAVE_MEMORY = (
    "use --recompute, fewer rows at a time (--batch-size, --accumulate), a shorter --length or a "
    "smaller model"
)

_FLOAT = 4  # bytes
# Numbers kept per hidden unit, without the result, which counts as the next matrix's input.
_ACTIVATED = {GELU: 1, SwiGLU: 3, ClampedSwiGLU: 6}


@dataclass(frozen=True)
class Estimate:
    """Peak bytes of a step."""

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

    def refuse_more_than_there_is(self, device: torch.device = CPU) -> None:
        """Raise OssiaError if the device has less free memory, as far as that is known. Of a GPU
        only what is there without activations counts: autocast may halve those.
        """
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        needed = self.total - on_gpu * self.activations
        if free is not None and needed > free:
            where = f" on {device}" if on_gpu else ""
            raise OssiaError(
                f"training needs {self}, and {format_size(free)} are free{where}: {SAVE_MEMORY}"
            )


@dataclass(frozen=True)
class Updates:
    """The low-rank updates that are trained.

    rounded: training rounds them to MXFP4. native: `ops.adapted` computes with native products.
    """

    learned: LoRA
    rounded: bool = False
    native: bool = False


def layers(
    config: ModelConfig, tokens: int, *, recompute: bool, updates: Updates | None = None
) -> int:
    """Bytes that the layers keep for the gradient of this many tokens, with respect to all weights
    or to `updates`, in float32. They follow what torch keeps for each operation of `ops.training`,
    with an error of about a tenth.
    """
    kept = [
        _FLOAT * tokens * _layer(config, i, updates) + _packed(config, i, tokens, updates)
        for i in range(len(config.layers))
    ]
    inputs = _FLOAT * tokens * config.hidden_size * len(kept)
    return inputs + max(kept) if recompute else sum(kept)


def loss(config: ModelConfig, tokens: int) -> int:
    """Bytes of the loss: the last norm and its gradient; and for one chunk the logits, their
    gradient and a copy.
    """
    logits = min(tokens * config.vocab_size, max(CHUNK, config.vocab_size))
    return _FLOAT * (4 * tokens * config.hidden_size + 3 * logits)


@dataclass(frozen=True)
class _Input:
    """The input of some matrices of a layer, for one token."""

    kind: str  # of the matrices, as in --targets
    width: int
    matrices: int = 1
    copies: int = 1  # of the token: one for each chosen expert
    kept: bool = False  # by the operation that produced it

    def numbers(self, updates: Updates | None) -> int:
        """Numbers that the products keep."""
        own = 0 if self.kept else self.width
        if updates is None:
            return self.copies * own
        learned = updates.learned
        if self.kind not in learned.targets:
            return 0
        each = learned.rank
        if learned.dropout:  # each matrix keeps its own mask and masked input
            each += 2 * self.width
            own = own if updates.rounded and self.kind == "experts" else 0
        return self.copies * (own + self.matrices * each)


def _layer(config: ModelConfig, index: int, updates: Updates | None) -> int:
    """Numbers that one layer keeps per token."""
    layer, hidden = config.layers[index], config.hidden_size
    # A trained RMSNorm keeps its normalised input.
    learns = updates is None and not isinstance(config.norm, LayerNorm)
    kept = 2 * (hidden + learns * hidden) + _attention(layer.attention, updates)
    match layer.feedforward:
        case MLPConfig() as mlp:
            inner = mlp.intermediate_size
            inputs = [
                _Input("mlp", hidden, matrices=1 if isinstance(mlp.activation, GELU) else 2),
                _Input("mlp", inner),
            ]
            kept += _ACTIVATED[type(mlp.activation)] * inner
        case MoEConfig() as moe:
            inner, chosen = moe.intermediate_size, moe.experts_per_token
            inputs = [
                _Input("router", hidden),
                _Input("experts", hidden, copies=chosen),
                _Input("experts", inner, copies=chosen),
            ]
            if updates is not None and _keeps_little(updates):
                inputs = [_Input("router", hidden, kept=True)]
                updated = "experts" in updates.learned.targets
                kept += hidden + chosen * 2 * (inner + updated * updates.learned.rank)
            else:
                # Expert outputs are kept because they are weighted.
                kept += chosen * (_ACTIVATED[type(moe.activation)] * inner + hidden)
    inputs += [
        _Input("attention", hidden, matrices=3),
        _Input("attention", layer.attention.num_heads * layer.attention.head_dim, kept=True),
    ]
    return kept + sum(some.numbers(updates) for some in inputs)


def _keeps_little(updates: Updates) -> bool:
    """Whether experts keep no more than `ops.adapted` says."""
    drops = updates.learned.dropout > 0 and "experts" in updates.learned.targets
    return updates.native and not updates.rounded and not drops


def _attention(config: AttentionConfig, updates: Updates | None) -> int:
    """Numbers kept per token: queries, keys, values and the result. QK-norm keeps its input too,
    and if trained also its normalised input.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    more = config.qk_norm * (1 + (updates is None))
    return (2 + more) * (queries + keys)


def _packed(config: ModelConfig, index: int, tokens: int, updates: Updates | None) -> int:
    """Bytes of a layer's experts that are packed together with their updates."""
    moe = config.layers[index].feedforward
    if updates is None or not updates.rounded or not isinstance(moe, MoEConfig):
        return 0
    used = min(moe.num_experts, tokens * moe.experts_per_token)
    blocks = 3 * moe.intermediate_size * config.hidden_size // mxfp4.BLOCK
    return used * blocks * (mxfp4.BLOCK // 2 + 1)


def full(config: ModelConfig, settings: Training) -> Estimate:
    """The estimate for training all weights with AdamW, in float32."""
    total = count(config).parameters
    rounded = expert_parameters(config) if settings.mxfp4_steps else 0
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
    """The estimate for low-rank updates: matrices keep their stored format, and everything else is
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
    shapes = [module.value.shape for module in matrices.values()]
    trained = sum(math.prod(lead) * learned.rank * (r + c) for *lead, r, c in shapes)
    tokens = settings.batch_size * settings.length // settings.accumulate
    return Estimate(
        weights=sum(sizes.values()) + _FLOAT * trained,
        gradients=_FLOAT * trained,
        optimizer=2 * _FLOAT * trained,
        activations=layers(
            stored,
            tokens,
            recompute=settings.recompute,
            updates=Updates(
                learned,
                rounded=settings.mxfp4_steps > 0,
                native=packing.native() is not None,
            ),
        )
        + loss(stored, tokens),
    )
