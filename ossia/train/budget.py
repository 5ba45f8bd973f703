"""An estimate of the memory that training needs, made before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ossia.adapt import lora
from ossia.adapt.lora import LoRA
from ossia.checkpoint.contents import DENSE_DTYPES
from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    LayerNorm,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RoPE,
    SwiGLU,
)
from ossia.errors import OssiaError
from ossia.insight.counts import count, expert_parameters, tensors
from ossia.model import Decoder
from ossia.ops import mxfp4, packing
from ossia.ops.attention import SCORES
from ossia.system.memory import available_memory, format_size
from ossia.train.device import CPU
from ossia.train.loss import CHUNK
from ossia.train.settings import Precision, Training

SAVE_MEMORY = (
    "use --recompute, fewer rows at a time (--batch-size, --accumulate), a shorter --length or a "
    "smaller model"
)

_FLOAT = 4  # bytes
_GPU_CHUNK = 1 << 28  # logits at a time, at most; see ops/triton/training_loss.py
# Numbers kept per hidden unit, without the result, which counts as the next matrix's input.
_ACTIVATED = {GELU: 1, SwiGLU: 3, ClampedSwiGLU: 6}
_NATIVE = {GELU: 1, SwiGLU: 2, ClampedSwiGLU: 2}


@dataclass(frozen=True)
class Estimate:
    """Peak bytes of a step: of what lives at once. The host's allocator holds more where blocks are
    small. Glibc keeps those of up to 32 MiB that are freed, among which others do not fit: with
    `--recompute` 4,096 tokens of small-gpt-oss took 358 MB, and 208 MB where each block of 256 KiB
    is a mapping of its own (MALLOC_MMAP_THRESHOLD_=262144), which the estimate exceeds by 13 %.
    """

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

    def refuse_more_than_there_is(
        self, device: torch.device = CPU, hint: str = SAVE_MEMORY
    ) -> None:
        """Raise OssiaError, with a hint at what takes less, if the device has less free memory, as
        far as that is known. Of a GPU only what is there without activations counts: autocast and
        compiled layers keep fewer of those.
        """
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else available_memory()
        needed = self.total - on_gpu * self.activations
        if free is not None and needed > free:
            where = f" on {device}" if on_gpu else ""
            raise OssiaError(
                f"training needs {self}, and {format_size(free)} are free{where}, at least "
                f"{format_size(needed - free)} too little: {hint}"
            )


@dataclass(frozen=True)
class Updates:
    """The low-rank updates that are trained.

    rounded: training rounds them to MXFP4. native: `ops.adapted` computes with native products, or
    `ops.triton.frozen` on a GPU. narrow: under autocast on a GPU, where what products keep is in
    bfloat16.
    """

    learned: LoRA
    rounded: bool = False
    native: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Whole:
    """All weights are trained: by `ops.cpu.training` if `native`, else by `ops.training`. narrow:
    natively in bfloat16, where what products keep is in it, a copy of each matrix too.
    """

    native: bool = False
    narrow: bool = False


Trained = Whole | Updates


def layers(
    config: ModelConfig,
    tokens: int,
    *,
    recompute: bool,
    trained: Trained = Whole(),
    length: int = 0,
) -> int:
    """Bytes that the layers keep for the gradient of this many tokens. They follow what is kept for
    each operation of the backend, with an error of about a tenth. length: of a row, where attention
    with dropout keeps its probabilities: on the CPU.
    """
    kept = _by_layer(config, tokens, trained, length)
    inputs = _FLOAT * tokens * config.hidden_size * len(kept)
    return inputs + max(kept) if recompute else sum(kept)


def backward(config: ModelConfig, tokens: int, trained: Trained, length: int = 0) -> int:
    """Bytes of gradients while a layer runs backwards: about what it kept."""
    return max(_by_layer(config, tokens, trained, length))


def _by_layer(config: ModelConfig, tokens: int, trained: Trained, length: int) -> list[int]:
    """Bytes that each layer keeps."""
    width = _FLOAT // 2 if trained.narrow else _FLOAT
    each = [
        _FLOAT * _norms(config, trained) + width * _layer(config, i, trained)
        for i in range(len(config.layers))
    ]
    return [
        tokens * (one + _rotations(config, i, trained) + _probabilities(config, i, tokens, length))
        + _matrices(config, i, tokens, trained)
        for i, one in enumerate(each)
    ]


def loss(config: ModelConfig, tokens: int, *, on_gpu: bool = False) -> int:
    """Bytes of the loss: the last norm and its gradient; and for one chunk the logits, their
    gradient and a copy, or on a GPU the logits, which become their gradient.
    """
    chunk, copies = (_GPU_CHUNK, 1) if on_gpu else (CHUNK, 3)
    logits = min(tokens * config.vocab_size, max(chunk, config.vocab_size))
    return _FLOAT * (4 * tokens * config.hidden_size + copies * logits)


@dataclass(frozen=True)
class _Input:
    """The input of some matrices of a layer, for one token."""

    kind: str  # of the matrices, as in --targets
    width: int
    matrices: int = 1
    copies: int = 1  # of the token: one for each chosen expert
    kept: bool = False  # by the operation that produced it

    def numbers(self, trained: Trained) -> int:
        """Numbers that the products keep."""
        own = 0 if self.kept else self.width
        if isinstance(trained, Whole):
            return self.copies * own
        learned = trained.learned
        if self.kind not in learned.targets:
            return 0
        each = learned.rank
        if learned.dropout:  # each matrix keeps its own mask and masked input
            each += 2 * self.width
            own = own if trained.rounded and self.kind == "experts" else 0
        return self.copies * (own + self.matrices * each)


def _natively(trained: Trained) -> bool:
    """Whether all operations are native ones, not only products."""
    return isinstance(trained, Whole) and trained.native


def _keeps_normalised(trained: Trained) -> bool:
    """Whether an RMSNorm keeps its normalised input too: if it is trained by torch."""
    return isinstance(trained, Whole) and not trained.native


def _norms(config: ModelConfig, trained: Trained) -> int:
    """Numbers that the norms of one layer keep per token."""
    twice = _keeps_normalised(trained) and not isinstance(config.norm, LayerNorm)
    return 2 * (config.hidden_size + twice * config.hidden_size)


def _rotations(config: ModelConfig, index: int, trained: Trained) -> int:
    """Bytes of the cosines and sines that native rotations keep per token."""
    rotates = _natively(trained) and isinstance(config.position, RoPE)
    return _FLOAT * rotates * 2 * config.layers[index].attention.head_dim


def _probabilities(config: ModelConfig, index: int, tokens: int, length: int) -> int:
    """Bytes that attention with dropout keeps per token, in blocks of queries: the probabilities,
    their factors and products; and of each block the keys and values that it sees.
    """
    attention = config.layers[index].attention
    if not config.dropout.attention or not length:
        return 0
    block = min(length, max(1, SCORES // (tokens * attention.num_heads)))
    seen = (length + block) // 2 if block < length else length  # on average
    if attention.window is not None:
        seen = min(seen, attention.window + block)
    copied = 2 * attention.num_kv_heads * attention.head_dim
    return _FLOAT * seen * (3 * attention.num_heads + copied // block)


def _layer(config: ModelConfig, index: int, trained: Trained) -> int:
    """Numbers that one layer keeps per token, beside its norms."""
    layer, hidden = config.layers[index], config.hidden_size
    activated = _NATIVE if _natively(trained) else _ACTIVATED
    kept = _attention(layer.attention, trained)
    if config.dropout.residual:
        kept += 2 * hidden
    match layer.feedforward:
        case MLPConfig() as mlp:
            inner = mlp.intermediate_size
            inputs = [
                _Input("mlp", hidden, matrices=1 if isinstance(mlp.activation, GELU) else 2),
                _Input("mlp", inner),
            ]
            kept += activated[type(mlp.activation)] * inner
        case MoEConfig() as moe:
            inner, chosen = moe.intermediate_size, moe.experts_per_token
            inputs = [
                _Input("router", hidden),
                _Input("experts", hidden, copies=chosen),
                _Input("experts", inner, copies=chosen),
            ]
            if _keeps_little(trained):
                inputs = [_Input("router", hidden, kept=True)]
                kept += hidden + chosen * 2 * (inner + _expert_rank(trained))
            else:
                # Expert outputs are kept because they are weighted.
                kept += chosen * (activated[type(moe.activation)] * inner + hidden)
    inputs += [
        _Input("attention", hidden, matrices=3),
        _Input("attention", layer.attention.num_heads * layer.attention.head_dim, kept=True),
    ]
    return kept + sum(some.numbers(trained) for some in inputs)


def _keeps_little(trained: Trained) -> bool:
    """Whether experts keep no more than `ops.mixture` says."""
    if isinstance(trained, Whole):
        return trained.native
    drops = trained.learned.dropout > 0 and "experts" in trained.learned.targets
    return trained.native and not trained.rounded and not drops


def _expert_rank(trained: Trained) -> int:
    """The rank of updates of experts, 0 without any."""
    if isinstance(trained, Updates) and "experts" in trained.learned.targets:
        return trained.learned.rank
    return 0


def _attention(config: AttentionConfig, trained: Trained) -> int:
    """Numbers kept per token: queries, keys, values and the result. QK-norm keeps its input too."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    more = config.qk_norm * (1 + _keeps_normalised(trained))
    return (2 + more) * (queries + keys)


def _matrices(config: ModelConfig, index: int, tokens: int, trained: Trained) -> int:
    """Bytes of a layer's matrices that are kept in another form: in bfloat16, or packed together
    with their updates.
    """
    if isinstance(trained, Whole):
        if not trained.narrow:
            return 0
        own = f"layers.{index}."
        sizes = (x.parameters for x in tensors(config) if x.role and x.name.startswith(own))
        return _FLOAT // 2 * sum(sizes)
    moe = config.layers[index].feedforward
    if not trained.rounded or not isinstance(moe, MoEConfig):
        return 0
    used = min(moe.num_experts, tokens * moe.experts_per_token)
    blocks = 3 * moe.intermediate_size * config.hidden_size // mxfp4.BLOCK
    return used * blocks * (mxfp4.BLOCK // 2 + 1)


def full(config: ModelConfig, settings: Training, device: torch.device = CPU) -> Estimate:
    """The estimate for training all weights with AdamW."""
    total = count(config).parameters
    rounded = expert_parameters(config) if settings.mxfp4_steps else 0
    tokens = settings.batch_size * settings.length // settings.accumulate
    native = device.type == "cpu" and packing.native() is not None
    trained = Whole(native, narrow=native and settings.dtype is Precision.BFLOAT16)
    length = settings.length if device.type == "cpu" else 0
    kept = layers(config, tokens, recompute=settings.recompute, trained=trained, length=length)
    return Estimate(
        weights=_FLOAT * total,
        gradients=_FLOAT * (total + config.vocab_size * config.hidden_size),
        optimizer=2 * _FLOAT * total,
        activations=kept
        + backward(config, tokens, trained, length)
        + loss(config, tokens)
        + _FLOAT * rounded,
    )


def adapters(
    stored: ModelConfig, settings: Training, learned: LoRA, device: torch.device = CPU
) -> Estimate:
    """The estimate for low-rank updates: matrices keep their stored format, on a GPU the embedding
    and the unembedding too, and everything else is float32.
    """
    on_gpu = device.type == "cuda"
    with torch.device("meta"):
        decoder = Decoder(stored)
    matrices = dict(lora.adaptable(decoder, learned.targets))
    width = DENSE_DTYPES[stored.dtype].itemsize
    kept = {f"{name}.{part}" for name in matrices for part in ("weight", "blocks", "scales")}
    kept |= set(lora.TABLES if on_gpu else ())
    sizes = {
        name: value.numel() * (width if name in kept else _FLOAT)
        if value.is_floating_point()
        else value.nbytes
        for name, value in decoder.state_dict().items()
    }
    shapes = [module.value.shape for module in matrices.values()]
    trained = sum(math.prod(lead) * learned.rank * (r + c) for *lead, r, c in shapes)
    tokens = settings.batch_size * settings.length // settings.accumulate
    narrow = on_gpu and settings.dtype is not Precision.FLOAT32
    updates = Updates(
        learned,
        rounded=settings.mxfp4_steps > 0,
        native=on_gpu or packing.native() is not None,
        narrow=narrow,
    )
    length = 0 if on_gpu else settings.length
    kept = layers(stored, tokens, recompute=settings.recompute, trained=updates, length=length)
    if on_gpu:  # an evaluation, which keeps nothing, has the unembedding in float32
        widened = _FLOAT * stored.vocab_size * stored.hidden_size if width < _FLOAT else 0
        kept = max(kept, widened) if narrow else kept + widened
    return Estimate(
        weights=sum(sizes.values()) + _FLOAT * trained,
        gradients=_FLOAT * trained,
        optimizer=2 * _FLOAT * trained,
        activations=kept + loss(stored, tokens, on_gpu=on_gpu),
    )
