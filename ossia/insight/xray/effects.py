"""What a change of precision or of architecture does to a model's logits on a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ossia.config import ModelConfig, Role
from ossia.errors import OssiaError
from ossia.insight.xray.predict import rows
from ossia.insight.xray.reader import hidden_states
from ossia.model import Decoder
from ossia.model.linear import Experts, Linear, Weighted
from ossia.ops.mxfp4 import BLOCK, quantize
from ossia.ops.weight import Weight


@dataclass(frozen=True)
class Difference:
    """How far one model's predictions on a text are from another's, by position.

    kl: float32 (tokens,), the Kullback-Leibler divergence of the other's distribution from the
    first's, in nats. agrees: bool (tokens,), whether both find the same token likeliest. largest:
    float32 (tokens,), the largest difference between their logits.
    """

    kl: Tensor
    agrees: Tensor
    largest: Tensor


@torch.no_grad()
def difference(one: tuple[Decoder, Tensor], other: tuple[Decoder, Tensor]) -> Difference:
    """Of two models and their normalised hidden states (tokens, hidden) on the same tokens."""
    parts = []
    for block in rows(one[0], len(one[1])):
        first, second = (decoder.unembed(hidden[block]) for decoder, hidden in (one, other))
        logprobs = first.log_softmax(-1)
        apart = logprobs.exp() * (logprobs - second.log_softmax(-1))
        agrees = first.argmax(-1) == second.argmax(-1)
        largest = (first - second).abs().amax(-1)
        parts.append((apart.nan_to_num(0.0).sum(-1), agrees, largest))
    return Difference(*(torch.cat(x).cpu() for x in zip(*parts, strict=True)))


Progress = Callable[[str], None]


def precision_effects(
    decoder: Decoder, hidden: Tensor, tokens: Tensor, progress: Progress
) -> Iterator[tuple[str, Difference]]:
    """The effect of each lower precision that this model can take: its name, and the difference.
    hidden: the model's own normalised hidden states (tokens, hidden).
    """
    own = decoder, hidden
    progress("int8 keys and values")
    yield (
        "int8 keys and values",
        difference(own, (decoder, hidden_states(decoder, tokens, kv=torch.int8))),
    )
    if not decoder.is_int8:
        progress("int8 dense weights")
        other = _changed(decoder, _is_dense, decoder.ops.quantize)
        unembedding = other.untie()
        unembedding.replace(decoder.ops.quantize(unembedding.weight))
        yield "int8 dense weights", difference(own, (other, hidden_states(other, tokens)))
        del other, unembedding
    if any(_can_pack(module) for module in decoder.modules()):
        progress("MXFP4 experts")
        other = _changed(decoder, _can_pack, quantize)
        yield "MXFP4 experts", difference(own, (other, hidden_states(other, tokens)))


def _changed(
    decoder: Decoder, chosen: Callable[[nn.Module], bool], change: Callable[[Tensor], Weight]
) -> Decoder:
    """A decoder over the same weights, of which the `chosen` in its layers are changed. A layer's
    changed weights exist only while it runs: a copy of all would be as large as a model.
    """
    other = decoder.on(decoder.ops)
    for layer in other.layers:
        own = {m: m.value for m in layer.modules() if isinstance(m, Weighted) and chosen(m)}
        layer.register_forward_pre_hook(partial(_replace, own, change))
        layer.register_forward_hook(partial(_replace, own, None))
    return other


def _replace(
    own: dict[Weighted, Weight], change: Callable[[Any], Weight] | None, *_: object
) -> None:
    for module, weight in own.items():
        module.replace(change(weight) if change else weight)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, Linear) and module.role is not Role.ROUTER


def _can_pack(module: nn.Module) -> bool:
    return (
        isinstance(module, Experts)
        and isinstance(module.value, Tensor)
        and module.value.shape[-1] % BLOCK == 0
    )


def without_sinks(config: ModelConfig) -> ModelConfig:
    """The config with no attention sink. Raises OssiaError if it has none to begin with."""
    if not any(layer.attention.sinks for layer in config.layers):
        raise OssiaError("sinks=off: the model has no attention sinks")
    return _with_attention(config, sinks=False)


def without_windows(config: ModelConfig) -> ModelConfig:
    """The config with full attention in every layer. Raises OssiaError if it has no windows."""
    if all(layer.attention.window is None for layer in config.layers):
        raise OssiaError("windows=off: the model has no sliding windows")
    return _with_attention(config, window=None)


def _with_attention(config: ModelConfig, **changes: bool | int | None) -> ModelConfig:
    layers = tuple(
        replace(layer, attention=replace(layer.attention, **changes)) for layer in config.layers
    )
    return replace(config, layers=layers)
