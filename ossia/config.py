"""The description of an architecture: frozen dataclasses, independent of files and tensors.

A `ModelConfig` is composed, not named: each difference between GPT-2, Qwen3 and gpt-oss is a value
here, matched once in `ossia.model`. `dataclasses.replace` makes a variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum


@dataclass(frozen=True)
class LearnedPositions:
    """One trained vector for each of the `context_length` positions, added to the token embedding
    (GPT-2).
    """


@dataclass(frozen=True)
class YaRN:
    """Rotary frequencies interpolated by wavelength, which extends the context by `factor`.

    Peng et al. 2023, https://arxiv.org/abs/2309.00071. `beta_fast` and `beta_slow` are rotations
    over the original context: dimensions that turn more often than `beta_fast` keep their
    frequency, those slower than `beta_slow` are divided by `factor`, and a linear ramp joins them.
    `truncate` rounds the ramp's bounds outwards to whole dimensions. `attention_factor` scales
    cosines and sines; None is the paper's 0.1 ln(factor) + 1.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None


@dataclass(frozen=True)
class RoPE:
    """Rotary positions over half-split pairs (i, i + head_dim/2), Su et al. 2021,
    https://arxiv.org/abs/2104.09864.
    """

    theta: float
    yarn: YaRN | None = None


Position = LearnedPositions | RoPE


@dataclass(frozen=True)
class LayerNorm:
    """Normalises mean and variance, with weight and bias (GPT-2)."""

    eps: float = 1e-5


class Rounding(StrEnum):
    """When an RMSNorm casts from float32: the same formula, but different bits in bfloat16."""

    BEFORE_WEIGHT = "before_weight"  # Qwen3: cast the normalised value, then multiply
    AFTER_WEIGHT = "after_weight"  # gpt-oss: multiply in float32, then cast


@dataclass(frozen=True)
class RMSNorm:
    """Normalises the root mean square, with weight; Zhang & Sennrich 2019,
    https://arxiv.org/abs/1910.07467.
    """

    eps: float = 1e-6
    rounding: Rounding = Rounding.BEFORE_WEIGHT


Norm = LayerNorm | RMSNorm


@dataclass(frozen=True)
class AttentionConfig:
    """Causal attention with `num_heads` query heads in groups that share one of `num_kv_heads` key
    and value heads.

    With a `window`, key j is visible to query i iff 0 <= i - j < window. `sinks` adds a learned
    logit per query head to the softmax, whose column is then dropped. `qk_norm` normalises each
    head of q and k before the rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    bias: bool = False
    qk_norm: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")


@dataclass(frozen=True)
class GELU:
    """down(gelu(up(x))), with the tanh approximation of GELU."""


@dataclass(frozen=True)
class SwiGLU:
    """down(silu(gate(x)) * up(x)); Shazeer 2020, https://arxiv.org/abs/2002.05202."""


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gpt-oss's SwiGLU: g = min(gate, limit), u = clamp(up, -limit, limit), down(g * sigmoid(alpha
    * g) * (u + 1)).
    """

    limit: float = 7.0
    alpha: float = 1.702


@dataclass(frozen=True)
class MLPConfig:
    """One dense feed-forward network; gated activations have a `gate` beside `up` and `down`."""

    intermediate_size: int
    activation: GELU | SwiGLU | ClampedSwiGLU
    bias: bool = False


class Router(StrEnum):
    """How router logits become the weights of the chosen experts."""

    TOP_K_THEN_SOFTMAX = "top_k_then_softmax"  # gpt-oss: over the chosen logits only
    SOFTMAX_THEN_TOP_K = "softmax_then_top_k"  # the chosen keep their share, and sum to less than 1
    SOFTMAX_THEN_TOP_K_RENORMALIZED = "softmax_then_top_k_renormalized"  # Qwen3: and sum to 1


class ExpertFormat(StrEnum):
    """How expert matrices are stored, in memory and on disk."""

    DENSE = "dense"
    MXFP4 = "mxfp4"


@dataclass(frozen=True)
class MoEConfig:
    """`num_experts` gated networks; a router selects `experts_per_token` of them per token."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    activation: SwiGLU | ClampedSwiGLU
    router: Router
    bias: bool = False
    format: ExpertFormat = ExpertFormat.DENSE

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} is not between 1 and "
                f"num_experts {self.num_experts}"
            )


class Role(StrEnum):
    """The purpose of a matrix. Initialization, optimizers, LoRA, quantization and counts select
    matrices by it.
    """

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    ATTENTION_OUTPUT = "attention_output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    EXPERT_GATE_UP = "expert_gate_up"
    EXPERT_DOWN = "expert_down"
    UNEMBEDDING = "unembedding"

    @property
    def writes_residual(self) -> bool:
        """Whether its output is added to the residual stream."""
        return self in (Role.ATTENTION_OUTPUT, Role.DOWN, Role.EXPERT_DOWN)


ATTENTION_ROLES = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.ATTENTION_OUTPUT})
MLP_ROLES = frozenset({Role.GATE, Role.UP, Role.DOWN})
EXPERT_ROLES = frozenset({Role.EXPERT_GATE_UP, Role.EXPERT_DOWN})


@dataclass(frozen=True)
class LayerConfig:
    """One layer: x + attention(norm(x)), then x + feedforward(norm(x))."""

    attention: AttentionConfig
    feedforward: MLPConfig | MoEConfig


@dataclass(frozen=True)
class Dropout:
    """Probabilities during training; all zero for models trained without dropout."""

    embedding: float = 0.0
    attention: float = 0.0
    residual: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. `len(layers)` is its depth; `context_length` is the most
    positions it supports.
    """

    vocab_size: int
    hidden_size: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    position: Position
    norm: Norm
    tied_embeddings: bool = False
    dtype: str = "bfloat16"  # of dense weights: float32, bfloat16 or float16
    dropout: Dropout = field(default=Dropout())
    init_std: float = 0.02
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a model needs at least one layer")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {self.dtype!r}")
        for layer in self.layers:
            if isinstance(self.position, RoPE) and layer.attention.head_dim % 2:
                raise ValueError(f"RoPE needs an even head_dim, not {layer.attention.head_dim}")
            moe = layer.feedforward
            if isinstance(moe, MoEConfig) and moe.format is ExpertFormat.MXFP4:
                for name, size in (
                    ("hidden_size", self.hidden_size),
                    ("intermediate_size", moe.intermediate_size),
                ):
                    if size % 32:
                        raise ValueError(
                            f"MXFP4 experts need {name} to be a multiple of 32, not {size}"
                        )


def expert_formats(config: ModelConfig) -> frozenset[ExpertFormat]:
    """The formats of a model's experts; empty if it has none."""
    return frozenset(
        layer.feedforward.format
        for layer in config.layers
        if isinstance(layer.feedforward, MoEConfig)
    )


def with_expert_format(config: ModelConfig, format: ExpertFormat) -> ModelConfig:
    """The same architecture with all experts in that format.

    Raises ValueError if MXFP4 cannot hold matrices of their size.
    """
    layers = tuple(
        replace(layer, feedforward=replace(layer.feedforward, format=format))
        if isinstance(layer.feedforward, MoEConfig)
        else layer
        for layer in config.layers
    )
    return replace(config, layers=layers)
