"""A model in words and as JSON: its architecture, its cost and where its tensors lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ossia.config import (
    GELU,
    AttentionConfig,
    ExpertFormat,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Router,
    SwiGLU,
)
from ossia.insight.counts import count, kv_bytes
from ossia.insight.moves import Move, ranges


@dataclass(frozen=True)
class Subject:
    """A model to describe.

    file_bytes: size of a checkpoint's weight files; None for a preset. moves, ignored: where its
    tensors go, and names of those that are not read; empty unless asked for.
    """

    name: str
    config: ModelConfig
    file_bytes: int | None = None
    moves: tuple[Move, ...] = ()
    ignored: tuple[str, ...] = ()


def described(subject: Subject) -> Iterator[tuple[str, str]]:
    """Labels and texts, a line each."""
    config, counts = subject.config, count(subject.config)
    yield "model", subject.name
    yield "parameters", _parameters(counts.parameters)
    active = f"{_parameters(counts.active_parameters)} per token"
    if counts.lookup_parameters:
        active += f", without {_parameters(counts.lookup_parameters)} in lookup tables"
    yield "active", active
    yield from _architecture(config)
    yield "precision", config.dtype
    weights = f"{_bytes(counts.checkpoint_bytes)} of tensors"
    if subject.file_bytes is not None:
        weights += f", {_bytes(subject.file_bytes)} on disk"
    yield "weights", weights
    yield "read per token", f"{_bytes(counts.bytes_per_token)} of weights to decode one token"
    for label, kv in (("KV cache", None), ("  --kv int8", "int8"), ("  --kv fp8", "fp8")):
        one, full = (kv_bytes(config, n, kv) for n in (1, config.context_length))
        yield label, f"{one:,} bytes per token, {_bytes(full)} at full context"


def _architecture(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "layers", str(len(config.layers))
    yield "hidden size", f"{config.hidden_size:,}"
    tied = "tied to" if config.tied_embeddings else "separate from"
    yield "vocabulary", f"{config.vocab_size:,}, unembedding {tied} the embedding"
    yield "context", f"{config.context_length:,} tokens"
    yield "positions", _positions(config)
    yield "norm", f"{type(config.norm).__name__}, eps {config.norm.eps:g}"
    for layer in dict.fromkeys(config.layers):
        numbers = [i for i, other in enumerate(config.layers) if other == layer]
        if len(numbers) == len(config.layers):
            yield "every layer", ""
        else:
            yield f"{'layer' if len(numbers) == 1 else 'layers'} {ranges(numbers)}", ""
        yield "  attention", _attention(layer.attention)
        yield "  feed-forward", _feedforward(layer.feedforward, config.dtype)


def _positions(config: ModelConfig) -> str:
    position = config.position
    if isinstance(position, LearnedPositions):
        return "learned"
    text = f"RoPE, theta {position.theta:,.0f}"
    if position.yarn is not None:
        yarn = position.yarn
        text += f", YaRN x{yarn.factor:g} from {yarn.original_context:,} tokens"
    return text


def _attention(attention: AttentionConfig) -> str:
    parts = [
        f"{attention.num_heads} query heads, {attention.num_kv_heads} key/value heads "
        f"of {attention.head_dim}",
        "full" if attention.window is None else f"window {attention.window:,}",
    ]
    extras = {"QK-norm": attention.qk_norm, "sinks": attention.sinks, "bias": attention.bias}
    return ", ".join([*parts, *(name for name, present in extras.items() if present)])


_ROUTERS = {
    Router.TOP_K_THEN_SOFTMAX: "top-k, then softmax",
    Router.SOFTMAX_THEN_TOP_K: "softmax, then top-k",
    Router.SOFTMAX_THEN_TOP_K_RENORMALIZED: "softmax, top-k, renormalised",
}


def _feedforward(network: MLPConfig | MoEConfig, dtype: str) -> str:
    if isinstance(network.activation, GELU):
        activation = "GELU"
    elif isinstance(network.activation, SwiGLU):
        activation = "SwiGLU"
    else:
        activation = f"SwiGLU clamped at {network.activation.limit:g}"
    bias = ", bias" if network.bias else ""
    if not isinstance(network, MoEConfig):
        return f"{network.intermediate_size:,} wide, {activation}{bias}"
    precision = "MXFP4" if network.format is ExpertFormat.MXFP4 else dtype
    return (
        f"{network.experts_per_token} of {network.num_experts} experts "
        f"{network.intermediate_size:,} wide in {precision}, {activation}{bias}; "
        f"router: {_ROUTERS[network.router]}"
    )


def record(subject: Subject) -> dict[str, Any]:
    """The description as JSON."""
    config, counts = subject.config, count(subject.config)
    found = {
        "name": subject.name,
        **{item.name: getattr(counts, item.name) for item in fields(counts)},
        "kv_bytes_full_context": kv_bytes(config, config.context_length),
        "kv_bytes_per_token_int8": kv_bytes(config, 1, "int8"),
        "kv_bytes_full_context_int8": kv_bytes(config, config.context_length, "int8"),
        "kv_bytes_per_token_fp8": kv_bytes(config, 1, "fp8"),
        "kv_bytes_full_context_fp8": kv_bytes(config, config.context_length, "fp8"),
        "file_bytes": subject.file_bytes,
        "config": _tagged(config),
    }
    if subject.moves:
        found["tensors"] = [
            {"stored": move.theirs, "parameter": move.ours, "kind": move.kind}
            for move in subject.moves
        ]
        found["ignored"] = subject.ignored
    return found


def _tagged(value: Any) -> Any:
    """A config as JSON, each part with the name of its type."""
    if is_dataclass(value):
        parts = {item.name: _tagged(getattr(value, item.name)) for item in fields(value)}
        return {"type": type(value).__name__, **parts}
    if isinstance(value, tuple):
        return [_tagged(item) for item in value]
    return value


def _parameters(count: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count:,} ({count / size:.3g} {unit})"
    return f"{count:,}"


def _bytes(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,} bytes"
