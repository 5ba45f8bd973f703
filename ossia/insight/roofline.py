"""Bounds on speed: a step takes at least the time to read its bytes, and that of its products.

The roofline of Williams et al. 2009, https://doi.org/10.1145/1498765.1498785. Weights are read once
for a step, keys and values once for each sequence; experts count by the expected number that a
batch touches. No program can be faster with the same bytes; kernels, launches, networks and
activations make each slower.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.config import ModelConfig, MoEConfig
from ossia.insight.counts import bytes_by_part, count, flops_by_part, kv_bytes, training_flops
from ossia.insight.hardware import Hardware

_LARGEST_BATCH = 1 << 20  # at which the search for a knee ends


@dataclass(frozen=True)
class Bound:
    """The least time of one step on a machine, in seconds.

    compute_seconds is None where the machine's rate is unknown. tokens: what the step produces.
    """

    tokens: int
    memory_seconds: float
    compute_seconds: float | None

    @property
    def seconds(self) -> float:
        return max(self.memory_seconds, self.compute_seconds or 0.0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def is_memory_bound(self) -> bool:
        return self.seconds == self.memory_seconds


def decoding(config: ModelConfig, hardware: Hardware, batch: int, context: int) -> Bound:
    """The next token of each of `batch` sequences, which then have `context` tokens."""
    read = sum(bytes_by_part(config, batch).values()) + batch * kv_bytes(config, context)
    return _bound(hardware, batch, read, batch * sum(flops_by_part(config, context).values()))


def prompt(config: ModelConfig, hardware: Hardware, batch: int, length: int) -> Bound:
    """The first token after each of `batch` prompts of `length` tokens, read in one step."""
    flops = batch * sum(flops_by_part(config, length, tokens=length, logits=1).values())
    read = sum(bytes_by_part(config, batch * length).values())
    return _bound(hardware, batch, read, flops)


def knee(config: ModelConfig, hardware: Hardware, context: int) -> int | None:
    """The smallest batch whose decoding is bound by compute; None if memory bounds every batch,
    because of the keys and values of each sequence, or if the machine's rate is unknown.
    """

    def bound_by_compute(batch: int) -> bool:
        return not decoding(config, hardware, batch, context).is_memory_bound

    if hardware.flops is None or not bound_by_compute(_LARGEST_BATCH):
        return None
    low, high = 0, _LARGEST_BATCH  # bytes per token only fall as a batch grows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bound_by_compute(middle) else (middle, high)
    return high


def largest_batch(config: ModelConfig, memory: float, context: int) -> int:
    """Sequences of `context` tokens whose keys and values fit beside the weights."""
    left = memory - count(config).checkpoint_bytes
    return max(0, int(left // kv_bytes(config, context)))


def experts_touched(moe: MoEConfig, batch: int) -> float:
    """The expected number of a layer's experts that a batch of tokens uses, if each token chooses
    its own at random.
    """
    return moe.num_experts * (1 - (1 - moe.experts_per_token / moe.num_experts) ** batch)


def training_hours(
    config: ModelConfig, hardware: Hardware, tokens: float, length: int, utilization: float
) -> float | None:
    """Hours of one such machine to train on `tokens` tokens, in texts of `length`, at a share of
    its peak; None if its rate is unknown.
    """
    if hardware.flops is None:
        return None
    return tokens * training_flops(config, length) / (hardware.flops * utilization) / 3600


def _bound(hardware: Hardware, tokens: int, read: float, flops: float) -> Bound:
    compute = None if hardware.flops is None else flops / hardware.flops
    return Bound(tokens, read / hardware.read_bytes_per_second, compute)
