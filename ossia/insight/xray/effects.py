"""What a change of precision or of architecture does to a model's logits on a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import OssiaError
from ossia.insight.xray.predict import rows
from ossia.insight.xray.reader import hidden_states
from ossia.model import Decoder
from ossia.model.linear import Experts
from ossia.ops.mxfp4 import BLOCK, quantize


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
        other = decoder.on(decoder.ops)
        other.to_int8()
        yield "int8 dense weights", difference(own, (other, hidden_states(other, tokens)))
        del other
    if dense := [name for name, experts in _experts(decoder) if _can_pack(experts)]:
        progress("MXFP4 experts")
        other = decoder.on(decoder.ops)
        for name in dense:
            module = other.get_submodule(name)
            assert isinstance(module, Experts)
            module.replace(quantize(module.weight))
        yield "MXFP4 experts", difference(own, (other, hidden_states(other, tokens)))


def _experts(decoder: Decoder) -> Iterator[tuple[str, Experts]]:
    return ((name, m) for name, m in decoder.named_modules() if isinstance(m, Experts))


def _can_pack(experts: Experts) -> bool:
    return isinstance(experts.value, Tensor) and experts.value.shape[-1] % BLOCK == 0


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
