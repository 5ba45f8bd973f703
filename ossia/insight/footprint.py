"""How much memory an architecture needs, and how long a text may grow, from its config alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ossia.config import ATTENTION_ROLES, EXPERT_ROLES, MLP_ROLES, ModelConfig
from ossia.insight.counts import (
    PACKED,
    Part,
    Tensor,
    count,
    flops_by_part,
    kv_bytes,
    tensors,
)

RANK = 16  # of low-rank updates: the default of `ossia finetune`, as are its targets
_TARGETS = ATTENTION_ROLES | MLP_ROLES | EXPERT_ROLES
_FLOAT = 4  # bytes
_STATE = 3  # numbers in float32 per trained weight beside itself: gradient, AdamW's two moments
_LONGEST = 1 << 40


def run_bytes(config: ModelConfig, context: int) -> int:
    """Weights as in the checkpoint, and the keys and values of one text of `context` tokens."""
    return count(config).checkpoint_bytes + kv_bytes(config, context)


@dataclass(frozen=True)
class LoRABytes:
    """Memory for low-rank updates, without activations: the frozen weights, whose adapted matrices
    keep their stored format while all else is float32, and the trained ones with gradients and
    AdamW's moments.
    """

    frozen: int
    trained: int  # parameters
    state: int

    @property
    def total(self) -> int:
        return self.frozen + self.state


def lora(config: ModelConfig, rank: int = RANK) -> LoRABytes:
    """Updates of all matrices of attention, MLPs and experts."""
    frozen = trained = 0
    for tensor in tensors(config):
        if tensor.role in _TARGETS:
            frozen += tensor.num_bytes
            trained += rank * _sides(tensor)
        else:
            frozen += _FLOAT * tensor.parameters
    return LoRABytes(frozen, trained, (1 + _STATE) * _FLOAT * trained)


def _sides(tensor: Tensor) -> int:
    """Rows and columns of all matrices in a tensor, together; none in the scales of packed ones."""
    if not tensor.parameters:
        return 0
    *stack, rows, columns = tensor.shape
    if tensor.dtype == PACKED:  # two columns to a byte
        *stack, rows, blocks, size = tensor.shape
        columns = 2 * blocks * size
    return prod(stack) * (rows + columns)


def training_bytes(config: ModelConfig) -> int:
    """Weights, gradients and AdamW's moments of all parameters in float32, without activations."""
    return (1 + _STATE) * _FLOAT * count(config).parameters


def longest_context(config: ModelConfig, memory: float) -> int | None:
    """The longest text that fits beside the weights, at most the model's context; None if not even
    one token does.
    """
    longest = _last(lambda n: run_bytes(config, n) <= memory, config.context_length)
    return longest or None


def attention_overtakes(config: ModelConfig) -> int | None:
    """The position from which a token's attention (its matrices and scores) costs more FLOPs than
    its feed-forward network (router and chosen experts); None if it never does, because every layer
    has a window. It may lie beyond the model's context.
    """

    def cheaper(length: int) -> bool:
        flops = flops_by_part(config, length)
        attention = flops[Part.ATTENTION] + flops[Part.SCORES]
        parts = (Part.MLP, Part.ROUTER, Part.EXPERTS)
        return attention < sum(flops.get(part, 0) for part in parts)

    last = _last(cheaper, _LONGEST)
    return None if last == _LONGEST else last + 1


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` for which a property holds that is lost once and for all; 0
    if it holds for none.
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
