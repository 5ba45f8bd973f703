"""The cost of a config: parameters, FLOPs, checkpoint bytes, bytes read per step, KV cache.

The only counter: records, estimates, reports and measurements take their figures from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from math import prod

from ossia.config import (
    ATTENTION_ROLES,
    EXPERT_ROLES,
    GELU,
    MLP_ROLES,
    AttentionConfig,
    ExpertFormat,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Role,
)

PACKED = "uint8"  # the dtype of MXFP4's blocks and scales
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, PACKED: 1}
_MXFP4_BLOCK = 32  # elements that share a scale; two elements to a byte


class Part(StrEnum):
    """What parameters, bytes and FLOPs are spent on."""

    LOOKUP = "lookup tables"  # an untied embedding, learned positions: rows are picked by index
    ATTENTION = "attention"
    SCORES = "attention scores"  # no parameters: products of queries, keys and values
    MLP = "feed-forward"
    ROUTER = "router"
    EXPERTS = "experts"
    NORM = "norms"
    UNEMBEDDING = "unembedding"  # a tied one is the embedding too


@dataclass(frozen=True)
class Tensor:
    """A tensor under its name in `Decoder.state_dict()`.

    `parameters` is the number of values that it encodes: two per byte of MXFP4 blocks, none for
    their scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    part: Part
    role: Role | None = None  # of a matrix; None of biases, norms, sinks and lookup tables
    share: Fraction = Fraction(1)  # of its bytes that are read to decode one token

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _DTYPE_BYTES[self.dtype]

    @property
    def is_lookup(self) -> bool:
        return self.part is Part.LOOKUP


@dataclass(frozen=True)
class Counts:
    """The cost of one architecture at its checkpoint's precision.

    Active parameters take part in the arithmetic of one token: every parameter but lookup tables
    (an untied embedding, learned positions) and the experts that are not chosen. A tied embedding
    is the unembedding as well, and counts once. This is the convention of the gpt-oss model card
    (https://arxiv.org/abs/2508.10925, table 1): 3.6 B of 20.9 B for gpt-oss-20b, 5.1 B of 116.8 B
    for gpt-oss-120b. Qwen's cards include the embedding: the 3.3 B of Qwen3-30B-A3B is
    `active_parameters + lookup_parameters`, 3.04 B + 0.31 B.

    `bytes_per_token` is the bytes of weights read to decode one token of one sequence;
    `kv_bytes_per_token` is what one position adds to the cache while it is within every layer's
    window (see `kv_bytes`).
    """

    parameters: int
    active_parameters: int
    lookup_parameters: int
    checkpoint_bytes: int  # of all tensors, without the files' headers
    bytes_per_token: int
    kv_bytes_per_token: int


@lru_cache(maxsize=64)
def count(config: ModelConfig) -> Counts:
    everything = list(tensors(config))
    tables = [t for t in everything if t.is_lookup]
    others = [t for t in everything if not t.is_lookup]
    return Counts(
        parameters=sum(t.parameters for t in everything),
        active_parameters=sum(int(t.parameters * t.share) for t in others),
        lookup_parameters=sum(t.parameters for t in tables),
        checkpoint_bytes=sum(t.num_bytes for t in everything),
        bytes_per_token=bytes_per_token(config),
        kv_bytes_per_token=kv_bytes(config, 1),
    )


@lru_cache(maxsize=64)
def parameters_by_part(config: ModelConfig) -> Mapping[Part, tuple[int, int]]:
    """Parameters in all, and those that one token uses, of each part that has any. Of lookup tables
    a token uses a row.
    """
    found: dict[Part, tuple[int, int]] = {}
    for tensor in tensors(config):
        total, used = found.get(tensor.part, (0, 0))
        used += int(tensor.parameters * tensor.share)
        found[tensor.part] = total + tensor.parameters, used
    return found


def expert_parameters(config: ModelConfig) -> int:
    """Parameters of the experts' matrices, without biases: what MXFP4 can hold."""
    return sum(t.parameters for t in tensors(config) if t.role in EXPERT_ROLES)


def bytes_per_token(config: ModelConfig, element_bytes: float | None = None) -> int:
    """Bytes of weights read to decode one token of one sequence; see `bytes_by_part`."""
    return int(sum(bytes_by_part(config, element_bytes=element_bytes).values()))


def bytes_by_part(
    config: ModelConfig, batch: int = 1, *, element_bytes: float | None = None
) -> dict[Part, float]:
    """Bytes of weights read by a step that decodes one token of each of `batch` sequences. Of
    experts it is the expected number, if each token chooses its own at random, independently of the
    others.

    element_bytes: size of an element of the matrices that can be quantized at load: those of
    attention and MLPs and the unembedding. Default: that of the config's dtype.
    """
    found: dict[Part, float] = {}
    for (part, share), size in _sizes(config, element_bytes).items():
        if part is Part.LOOKUP:
            read = min(Fraction(1), batch * share)
        else:  # each of the tokens passes it by with probability 1 - share
            read = share if batch == 1 else 1 - float(1 - share) ** batch
        found[part] = found.get(part, 0) + float(size * read)
    return found


@lru_cache(maxsize=64)
def _sizes(
    config: ModelConfig, element_bytes: float | None
) -> dict[tuple[Part, Fraction], Fraction]:
    """Bytes of the tensors of each part, by the share of them that one token reads."""
    quantizable = {*ATTENTION_ROLES, *MLP_ROLES, Role.UNEMBEDDING}
    found: dict[tuple[Part, Fraction], Fraction] = {}
    for tensor in tensors(config):
        size = Fraction(tensor.num_bytes)
        if element_bytes is not None and tensor.role in quantizable:
            size = tensor.parameters * Fraction(element_bytes)
        key = tensor.part, tensor.share
        found[key] = found.get(key, Fraction(0)) + size
    return found


def kv_bytes(config: ModelConfig, length: int, kv: str | None = None) -> int:
    """Bytes of keys and values of `length` positions; a sliding layer holds at most its window.

    In the checkpoint's precision, or in that of `--kv`: int8 with a float32 scale for each head and
    position, or fp8.
    """
    number, scale = {None: (_DTYPE_BYTES[config.dtype], 0), "int8": (1, 4), "fp8": (1, 0)}[kv]
    total = 0
    for attention, count in _attentions(config).items():
        held = length if attention.window is None else min(length, attention.window)
        size = attention.head_dim * number + scale
        total += count * 2 * held * attention.num_kv_heads * size
    return total


def forward_flops(config: ModelConfig, length: int) -> int:
    """FLOPs of a forward pass over one text of `length` tokens; see `flops_by_part`."""
    return sum(flops_by_part(config, length, tokens=length).values())


def flops_by_part(
    config: ModelConfig, length: int, *, tokens: int = 1, logits: int | None = None
) -> dict[Part, int]:
    """FLOPs of all matrix products for the last `tokens` of a text of `length` tokens, the keys and
    values of the others being cached; a multiplication and an addition count as two.

    Two for each weight of a matrix that a token is multiplied by, and four times head_dim for each
    attention score: two for the score, two for its share of the output. Only visible scores count:
    those of a query's own and earlier keys, within the window. logits: positions that are
    unembedded; default: all `tokens`.
    """
    found = {
        part: 2 * weights * (tokens if part is not Part.UNEMBEDDING or logits is None else logits)
        for part, weights in _products(config).items()
    }
    found[Part.SCORES] = sum(
        4
        * count
        * (_visible(attention, length) - _visible(attention, length - tokens))
        * attention.num_heads
        * attention.head_dim
        for attention, count in _attentions(config).items()
    )
    return found


@lru_cache(maxsize=64)
def _products(config: ModelConfig) -> dict[Part, int]:
    """Weights of matrices that one token is multiplied by."""
    found: dict[Part, int] = {}
    for tensor in tensors(config):
        if tensor.role is not None:
            weights = int(tensor.parameters * tensor.share)
            found[tensor.part] = found.get(tensor.part, 0) + weights
    return found


@lru_cache(maxsize=64)
def _attentions(config: ModelConfig) -> Counter[AttentionConfig]:
    """Each kind of attention, and the number of layers that have it."""
    return Counter(layer.attention for layer in config.layers)


def _visible(attention: AttentionConfig, length: int) -> int:
    """Pairs of a query and a key that it sees, in a text of `length` tokens."""
    width = length if attention.window is None else min(length, attention.window)
    return width * (width + 1) // 2 + (length - width) * width


def training_flops(config: ModelConfig, length: int) -> float:
    """FLOPs per token of training on texts of `length` tokens: the backward pass takes twice those
    of the forward pass. Recomputed layers do not count again.
    """
    return 3 * forward_flops(config, length) / length


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the model, in the order of the forward pass."""
    embedding = config.vocab_size, config.hidden_size
    if config.tied_embeddings:
        yield _matrix(config, "embedding", embedding, Role.UNEMBEDDING)
    else:
        yield _lookup(config, "embedding", embedding)
    if isinstance(config.position, LearnedPositions):
        yield _lookup(config, "positions", (config.context_length, config.hidden_size))
    for i, layer in enumerate(config.layers):
        name = f"layers.{i}"
        yield from _norm(config, f"{name}.attention_norm", config.hidden_size)
        yield from _attention(config, f"{name}.attention", layer.attention)
        yield from _norm(config, f"{name}.feedforward_norm", config.hidden_size)
        if isinstance(layer.feedforward, MoEConfig):
            yield from _moe(config, f"{name}.feedforward", layer.feedforward)
        else:
            yield from _mlp(config, f"{name}.feedforward", layer.feedforward)
    yield from _norm(config, "norm", config.hidden_size)
    if not config.tied_embeddings:
        yield _matrix(config, "unembedding", embedding, Role.UNEMBEDDING)


_PARTS = {
    **dict.fromkeys(ATTENTION_ROLES, Part.ATTENTION),
    **dict.fromkeys(MLP_ROLES, Part.MLP),
    **dict.fromkeys(EXPERT_ROLES, Part.EXPERTS),
    Role.ROUTER: Part.ROUTER,
    Role.UNEMBEDDING: Part.UNEMBEDDING,
}


def _vector(config: ModelConfig, name: str, size: int, part: Part) -> Tensor:
    return Tensor(name, (size,), config.dtype, size, part)


def _matrix(config: ModelConfig, name: str, shape: tuple[int, int], role: Role) -> Tensor:
    return Tensor(f"{name}.weight", shape, config.dtype, prod(shape), _PARTS[role], role)


def _lookup(config: ModelConfig, name: str, shape: tuple[int, int]) -> Tensor:
    table = Tensor(f"{name}.weight", shape, config.dtype, prod(shape), Part.LOOKUP)
    return replace(table, share=Fraction(1, shape[0]))


def _linear(
    config: ModelConfig, name: str, shape: tuple[int, int], role: Role, bias: bool
) -> Iterator[Tensor]:
    yield _matrix(config, name, shape, role)
    if bias:
        yield _vector(config, f"{name}.bias", shape[0], _PARTS[role])


def _norm(config: ModelConfig, name: str, size: int, part: Part = Part.NORM) -> Iterator[Tensor]:
    yield _vector(config, f"{name}.weight", size, part)
    if isinstance(config.norm, LayerNorm):
        yield _vector(config, f"{name}.bias", size, part)


def _attention(config: ModelConfig, name: str, attention: AttentionConfig) -> Iterator[Tensor]:
    hidden, head_dim, bias = config.hidden_size, attention.head_dim, attention.bias
    q, kv = attention.num_heads * head_dim, attention.num_kv_heads * head_dim
    yield from _linear(config, f"{name}.q", (q, hidden), Role.QUERY, bias)
    yield from _linear(config, f"{name}.k", (kv, hidden), Role.KEY, bias)
    yield from _linear(config, f"{name}.v", (kv, hidden), Role.VALUE, bias)
    yield from _linear(config, f"{name}.o", (hidden, q), Role.ATTENTION_OUTPUT, bias)
    if attention.qk_norm:
        yield from _norm(config, f"{name}.q_norm", head_dim, Part.ATTENTION)
        yield from _norm(config, f"{name}.k_norm", head_dim, Part.ATTENTION)
    if attention.sinks:
        yield _vector(config, f"{name}.sinks", attention.num_heads, Part.ATTENTION)


def _mlp(config: ModelConfig, name: str, mlp: MLPConfig) -> Iterator[Tensor]:
    hidden, inner, bias = config.hidden_size, mlp.intermediate_size, mlp.bias
    if not isinstance(mlp.activation, GELU):
        yield from _linear(config, f"{name}.gate", (inner, hidden), Role.GATE, bias)
    yield from _linear(config, f"{name}.up", (inner, hidden), Role.UP, bias)
    yield from _linear(config, f"{name}.down", (hidden, inner), Role.DOWN, bias)


def _moe(config: ModelConfig, name: str, moe: MoEConfig) -> Iterator[Tensor]:
    hidden, inner = config.hidden_size, moe.intermediate_size
    router = moe.num_experts, hidden
    yield from _linear(config, f"{name}.router", router, Role.ROUTER, moe.bias)
    gate_up = 2 * inner, hidden
    yield from _experts(config, f"{name}.gate_up", moe, gate_up, Role.EXPERT_GATE_UP)
    yield from _experts(config, f"{name}.down", moe, (hidden, inner), Role.EXPERT_DOWN)


def _experts(
    config: ModelConfig, name: str, moe: MoEConfig, shape: tuple[int, int], role: Role
) -> Iterator[Tensor]:
    """One matrix (rows, cols) and its bias for each expert."""
    rows, cols = shape
    share = Fraction(moe.experts_per_token, moe.num_experts)

    def stack(kind: str, shape: tuple[int, ...], dtype: str, parameters: int) -> Tensor:
        return Tensor(
            f"{name}.{kind}",
            (moe.num_experts, *shape),
            dtype,
            moe.num_experts * parameters,
            Part.EXPERTS,
            None if kind == "bias" else role,
            share,
        )

    if moe.format is ExpertFormat.MXFP4:
        blocks = cols // _MXFP4_BLOCK
        yield stack("blocks", (rows, blocks, _MXFP4_BLOCK // 2), PACKED, rows * cols)
        yield stack("scales", (rows, blocks), PACKED, 0)
    else:
        yield stack("weight", (rows, cols), config.dtype, rows * cols)
    if moe.bias:
        yield stack("bias", (rows,), config.dtype, rows)
