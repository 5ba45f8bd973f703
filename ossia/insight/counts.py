"""What a config costs: parameters, bytes on disk, bytes read per token, KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

from ossia.config import (
    GELU,
    AttentionConfig,
    ExpertFormat,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
_MXFP4_BLOCK = 32  # elements that share a scale; two elements to a byte


@dataclass(frozen=True)
class Tensor:
    """A parameter under its name in `Decoder.state_dict()`.

    `parameters` counts the numbers that it stands for: MXFP4 blocks two a byte, their scales none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    share: Fraction = Fraction(1)  # of its bytes that are read to decode one token
    is_lookup: bool = False  # rows are picked by index, not multiplied

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Counts:
    """The cost of one architecture at its checkpoint's precision.

    Active parameters take part in the arithmetic of one token: all but lookup tables and the
    experts not chosen. This is the convention of the gpt-oss model card
    (https://arxiv.org/abs/2508.10925, table 1: the unembedding counts, the embedding does not);
    Qwen's cards count the embedding too. A tied matrix is an unembedding and counts once.

    `bytes_per_token` are the weights read to decode one token of one sequence; `kv_bytes_per_token`
    is what one position adds to the cache while it lies in every layer's window (see `kv_bytes`).
    """

    parameters: int
    active_parameters: int
    checkpoint_bytes: int  # of all tensors, without the files' headers
    bytes_per_token: int
    kv_bytes_per_token: int


def count(config: ModelConfig) -> Counts:
    everything = list(tensors(config))
    return Counts(
        parameters=sum(t.parameters for t in everything),
        active_parameters=sum(int(t.parameters * t.share) for t in everything if not t.is_lookup),
        checkpoint_bytes=sum(t.num_bytes for t in everything),
        bytes_per_token=bytes_per_token(config),
        kv_bytes_per_token=kv_bytes(config, 1),
    )


def bytes_per_token(config: ModelConfig, element_bytes: float | None = None) -> int:
    """Bytes of weights read to decode one token of one sequence.

    element_bytes: what an element takes of the dense matrices of attention and MLPs and of the
    unembedding, which can be quantized when they are loaded; by default that of the config's dtype.
    """
    total = 0
    for tensor in tensors(config):
        size: float = tensor.num_bytes
        matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight")
        kept = tensor.is_lookup or tensor.name.endswith(".router.weight")
        if element_bytes is not None and matrix and not kept:
            size = tensor.parameters * element_bytes
        total += int(size * tensor.share)
    return total


def kv_bytes(config: ModelConfig, length: int, *, int8: bool = False) -> int:
    """Bytes of keys and values of `length` positions; a sliding layer holds at most its window.

    In the checkpoint's precision, or as int8 with a float32 scale for each head and position.
    """
    total = 0
    for layer in config.layers:
        attention = layer.attention
        held = length if attention.window is None else min(length, attention.window)
        size = attention.head_dim * (1 if int8 else _DTYPE_BYTES[config.dtype]) + (4 if int8 else 0)
        total += 2 * held * attention.num_kv_heads * size
    return total


def forward_flops(config: ModelConfig, length: int) -> int:
    """Multiplications and additions that a forward pass over one text of `length` tokens needs: two
    for each active parameter and token, and for each score four times head_dim.

    Only scores that count are counted: each query's keys up to its own, within the window.
    """
    scores = 0
    for layer in config.layers:
        attention = layer.attention
        width = length if attention.window is None else min(length, attention.window)
        pairs = width * (width + 1) // 2 + (length - width) * width
        scores += 4 * pairs * attention.num_heads * attention.head_dim
    return 2 * count(config).active_parameters * length + scores


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every parameter of the model, in the order of the forward pass."""
    hidden, vocab = config.hidden_size, config.vocab_size
    if config.tied_embeddings:
        yield _dense(config, "embedding.weight", (vocab, hidden))
    else:
        yield _lookup(config, "embedding.weight", vocab)
    if isinstance(config.position, LearnedPositions):
        yield _lookup(config, "positions.weight", config.context_length)
    for i, layer in enumerate(config.layers):
        name = f"layers.{i}"
        yield from _norm(config, f"{name}.attention_norm", hidden)
        yield from _attention(config, f"{name}.attention", layer.attention)
        yield from _norm(config, f"{name}.feedforward_norm", hidden)
        if isinstance(layer.feedforward, MoEConfig):
            yield from _moe(config, f"{name}.feedforward", layer.feedforward)
        else:
            yield from _mlp(config, f"{name}.feedforward", layer.feedforward)
    yield from _norm(config, "norm", hidden)
    if not config.tied_embeddings:
        yield _dense(config, "unembedding.weight", (vocab, hidden))


def _dense(config: ModelConfig, name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, shape, config.dtype, prod(shape))


def _lookup(config: ModelConfig, name: str, rows: int) -> Tensor:
    table = _dense(config, name, (rows, config.hidden_size))
    return replace(table, share=Fraction(1, rows), is_lookup=True)


def _linear(config: ModelConfig, name: str, rows: int, cols: int, bias: bool) -> Iterator[Tensor]:
    yield _dense(config, f"{name}.weight", (rows, cols))
    if bias:
        yield _dense(config, f"{name}.bias", (rows,))


def _norm(config: ModelConfig, name: str, size: int) -> Iterator[Tensor]:
    yield _dense(config, f"{name}.weight", (size,))
    if isinstance(config.norm, LayerNorm):
        yield _dense(config, f"{name}.bias", (size,))


def _attention(config: ModelConfig, name: str, attention: AttentionConfig) -> Iterator[Tensor]:
    hidden, head_dim, bias = config.hidden_size, attention.head_dim, attention.bias
    q, kv = attention.num_heads * head_dim, attention.num_kv_heads * head_dim
    yield from _linear(config, f"{name}.q", q, hidden, bias)
    yield from _linear(config, f"{name}.k", kv, hidden, bias)
    yield from _linear(config, f"{name}.v", kv, hidden, bias)
    yield from _linear(config, f"{name}.o", hidden, q, bias)
    if attention.qk_norm:
        yield from _norm(config, f"{name}.q_norm", head_dim)
        yield from _norm(config, f"{name}.k_norm", head_dim)
    if attention.sinks:
        yield _dense(config, f"{name}.sinks", (attention.num_heads,))


def _mlp(config: ModelConfig, name: str, mlp: MLPConfig) -> Iterator[Tensor]:
    hidden, inner = config.hidden_size, mlp.intermediate_size
    if not isinstance(mlp.activation, GELU):
        yield from _linear(config, f"{name}.gate", inner, hidden, mlp.bias)
    yield from _linear(config, f"{name}.up", inner, hidden, mlp.bias)
    yield from _linear(config, f"{name}.down", hidden, inner, mlp.bias)


def _moe(config: ModelConfig, name: str, moe: MoEConfig) -> Iterator[Tensor]:
    hidden, inner = config.hidden_size, moe.intermediate_size
    yield from _linear(config, f"{name}.router", moe.num_experts, hidden, moe.bias)
    yield from _experts(config, f"{name}.gate_up", moe, 2 * inner, hidden)
    yield from _experts(config, f"{name}.down", moe, hidden, inner)


def _experts(
    config: ModelConfig, name: str, moe: MoEConfig, rows: int, cols: int
) -> Iterator[Tensor]:
    share = Fraction(moe.experts_per_token, moe.num_experts)

    def routed(kind: str, shape: tuple[int, ...], dtype: str, parameters: int) -> Tensor:
        shape = (moe.num_experts, *shape)
        return Tensor(f"{name}.{kind}", shape, dtype, moe.num_experts * parameters, share)

    if moe.format is ExpertFormat.MXFP4:
        blocks = cols // _MXFP4_BLOCK
        yield routed("blocks", (rows, blocks, _MXFP4_BLOCK // 2), "uint8", rows * cols)
        yield routed("scales", (rows, blocks), "uint8", 0)
    else:
        yield routed("weight", (rows, cols), config.dtype, rows * cols)
    if moe.bias:
        yield routed("bias", (rows,), config.dtype, rows)
