"""Training's kernels at the shapes of true models, as functions of what makes inputs: compiled for
each architecture without a card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import Backend, Routing
from ossia.ops.low_rank import LowRank
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.triton import frozen, training_attention, training_experts, training_loss
from ossia.ops.values import ExpertWeights
from tests.ops.triton.true_shapes import Inputs


@dataclass(frozen=True)
class _Attention:
    """Forward and backward pass over rows of 1,024 tokens."""

    heads: int
    kv_heads: int
    size: int
    window: int = 0
    sinks: bool = False
    documents: bool = True
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, _: Backend, inputs: Inputs) -> Tensor:
        length = 1024
        q, k, v = (
            inputs.normal(2, length, count, self.size, dtype=self.dtype)
            for count in (self.heads, self.kv_heads, self.kv_heads)
        )
        sinks = inputs.normal(self.heads, dtype=torch.float32) if self.sinks else None
        firsts = ends = None
        if self.documents:
            firsts, ends = (inputs.integers(length, 2, length, dtype=torch.int32) for _ in "fe")
        seed = inputs.integers(9, 1, dtype=torch.int32) if self.dropout else None
        rest = (sinks, firsts, ends, seed)
        out, lse = training_attention.forward(q, k, v, *rest, self.window, self.dropout)
        found = training_attention.backward(
            out, q, k, v, *rest, out, lse, self.window, self.dropout
        )
        return found[0]


@dataclass(frozen=True)
class _Experts:
    """Forward and backward pass of a mixture over 2,048 tokens."""

    hidden: int
    inter: int
    experts: int
    chosen: int
    bias: bool = True
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, _: Backend, inputs: Inputs) -> Tensor:
        tokens, stack = 2048, (self.experts, self.hidden, self.inter)
        x = inputs.normal(tokens, self.hidden, dtype=torch.float32)
        gate_up = inputs.normal(self.experts, 2 * self.inter, self.hidden, dtype=torch.float32)
        down = inputs.normal(*stack, dtype=torch.float32)
        biases = [
            inputs.normal(self.experts, rows, dtype=torch.float32) if self.bias else None
            for rows in (2 * self.inter, self.hidden)
        ]
        routing = Routing(
            inputs.integers(self.experts, tokens, self.chosen),
            inputs.normal(tokens, self.chosen, dtype=torch.float32),
        )
        with torch.enable_grad():
            leaves = [t.requires_grad_() for t in (x, gate_up, down)]
            matrices = training_experts.Stack(gate_up, biases[0], down, biases[1])
            activation = ClampedSwiGLU() if self.bias else SwiGLU()
            out = training_experts.mixture(x, routing, matrices, activation, self.dtype, x)
            return torch.autograd.grad(out.sum(), leaves)[1]


def _frozen(_: Backend, inputs: Inputs) -> Tensor:
    """Forward and backward pass over 2,048 tokens through gpt-oss-20b's packed experts, with
    updates.
    """
    x, routing = _routed(inputs, 32)
    gate_up, down = (
        LowRank(
            _packed(inputs, 32, rows),
            inputs.normal(32, 16, 2880, dtype=torch.float32, scale=0.02),
            inputs.normal(32, rows, 16, dtype=torch.float32, scale=0.02),
            2.0,
        )
        for rows in (5760, 2880)
    )
    biases = [inputs.normal(32, rows, dtype=torch.float32) for rows in (5760, 2880)]
    stack = ExpertWeights(gate_up, biases[0], down, biases[1], ClampedSwiGLU())
    with torch.enable_grad():
        leaves = [t.requires_grad_() for t in (x, gate_up.a, gate_up.b, down.a, down.b)]
        layer = frozen.Layer.of(stack)
        assert layer is not None
        out = frozen.mixture(x, routing, layer, torch.bfloat16, x)
        return torch.autograd.grad(out.sum(), leaves)[0]


def _frozen_products(experts: int, dtype: torch.dtype) -> Callable[[Backend, Inputs], Tensor]:
    """2,048 tokens by packed matrices, and by their transposes."""

    def products(_: Backend, inputs: Inputs) -> Tensor:
        x, routing = _routed(inputs, experts)
        packed, by_expert = (
            _packed(inputs, experts, 2880),
            training_experts.sort(routing.experts, experts),
        )
        out = frozen.products(x.to(dtype), packed, None, by_expert, gather=True)
        return frozen.products_turned(out, packed, by_expert)

    return products


def _routed(inputs: Inputs, experts: int) -> tuple[Tensor, Routing]:
    choices = inputs.integers(experts, 2048, 4)
    weights = inputs.normal(2048, 4, dtype=torch.float32)
    return inputs.normal(2048, 2880, dtype=torch.float32), Routing(choices, weights)


def _packed(inputs: Inputs, experts: int, rows: int) -> MXFP4:
    blocks = inputs.integers(256, experts, rows, 90, 16, dtype=torch.uint8)
    return MXFP4(blocks, inputs.integers(122, experts, rows, 90, dtype=torch.uint8, low=118))


def _loss(_: Backend, inputs: Inputs) -> Tensor:
    logits, targets = inputs.normal(512, 50304), inputs.integers(50304, 512)
    training_loss.softmax_losses(logits, targets, 512.0, 0.0, slopes=False)
    training_loss.softmax_losses(logits, targets, 512.0, 1e-3, slopes=True)
    wide = inputs.normal(64, 2048, dtype=torch.float32)
    training_loss.softmax_losses(wide, targets[:64], 512.0, 1e-3, slopes=True)
    return logits


def _rounding(_: Backend, inputs: Inputs) -> Tensor:
    return training_experts.rounded(inputs.normal(8, 1536, 768, dtype=torch.float32))


CASES: dict[str, Callable[[Backend, Inputs], Tensor]] = {
    "training attention of GPT-2": _Attention(12, 12, 64),
    "training attention of GPT-2, dropout": _Attention(12, 12, 64, dropout=0.1),
    "training attention of gpt-oss": _Attention(64, 8, 64, sinks=True),
    "training attention of gpt-oss, window": _Attention(64, 8, 64, window=128, sinks=True),
    "training attention of Qwen3": _Attention(16, 8, 128),
    "training attention of heads of 32": _Attention(12, 4, 32, window=256, sinks=True),
    "training attention of heads of 256": _Attention(4, 1, 256, documents=False),
    "training attention in float32": _Attention(12, 12, 64, sinks=True, dtype=torch.float32),
    "training experts of 768": _Experts(768, 768, 32, 4),
    "training experts of gpt-oss": _Experts(2880, 2880, 32, 4),
    "training experts of Qwen3": _Experts(2048, 768, 128, 8, bias=False),
    "training experts of odd sizes": _Experts(90, 36, 8, 2),
    "training experts in float32": _Experts(768, 768, 8, 2, dtype=torch.float32),
    "frozen experts of gpt-oss-20b": _frozen,
    "frozen experts of gpt-oss-120b": _frozen_products(128, torch.bfloat16),
    "frozen experts in float32": _frozen_products(32, torch.float32),
    "training loss": _loss,
    "training rounding": _rounding,
}
