"""Backend: every operation of the model in readable PyTorch, on any device.

This class defines the results. Subclasses override what they do faster and are tested against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.config import ClampedSwiGLU, RoPE, Router, SwiGLU
from ossia.ops import int8, sampling
from ossia.ops.attention import causal_attention
from ossia.ops.int8 import Int8
from ossia.ops.paged import LayerKV, PagedKV
from ossia.ops.rope import attention_factor, frequencies
from ossia.ops.sampling import SamplingTable
from ossia.ops.values import (
    AttentionSpec,
    Documents,
    ExpertWeights,
    Norm,
    RopeTable,
    RouterWeights,
    Routing,
)
from ossia.ops.weight import ExpertsKind, Matrix, MatrixKind, Weight

Where = Documents | LayerKV | None


class Backend:
    """The operations of a model. Each method defines the correct result.

    A backend does not hold weights, so a model can be copied and pickled with it.
    """

    name = "reference"

    def embed(self, ids: Tensor, table: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Rows of table (count, hidden) by int64 ids (...), plus residual (..., hidden)."""
        out = F.embedding(ids, table)
        return out if residual is None else residual + out

    def rope_table(self, positions: Tensor, rope: RoPE, head_dim: int) -> RopeTable:
        """Cosines and sines, float32 (..., tokens, head_dim/2), of int64 positions (..., tokens);
        Su et al. 2021, https://arxiv.org/abs/2104.09864.
        """
        angles = positions[..., None].float() * frequencies(rope, head_dim, positions.device)
        factor = attention_factor(rope)
        return RopeTable(angles.cos() * factor, angles.sin() * factor)

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x (..., cols) times weight (rows, cols) transposed, plus bias (rows,), plus residual
        (..., rows) -> (..., rows) of `dtype`, x's own if None.

        A residual is added after `reduce`.
        """
        out = _linear(x, _matrix(weight), bias)
        out = out if residual is None else residual + self.reduce(out)
        return out if dtype is None else out.to(dtype)

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """`linear` of the same x by each weight and its bias."""
        return tuple(self.linear(x, *pair) for pair in zip(weights, biases, strict=True))

    def quantize(self, weight: Tensor) -> Int8:
        """A matrix in int8; see `int8.quantize`."""
        return int8.quantize(weight)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """x (..., hidden), normalised to mean 0 and variance 1; Ba et al. 2016,
        https://arxiv.org/abs/1607.06450. NaN where the variance overflows, except in training,
        where that would cost a pass over x and the loss tells.
        """
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return F.layer_norm(x, weight.shape, weight, bias, eps)
        out, _, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        return out.masked_fill(scale == 0, torch.nan)  # one over infinity; it would be the bias

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """x (..., hidden) over its root mean square, in float32, times weight.

        `round_before_weight` casts to x's dtype before the multiplication (Qwen3) rather than after
        it (gpt-oss). NaN where the mean of squares overflows.
        """
        normal = x.float()
        scale = torch.rsqrt(normal.square().mean(-1, keepdim=True) + eps)
        # One over infinity would make zeros of all, a finite and wrong text.
        normal = normal * scale.masked_fill(scale == 0, torch.nan)
        return weight * normal.to(x.dtype) if round_before_weight else (weight * normal).to(x.dtype)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """x (..., hidden), normalised by `layer_norm` or `rms_norm`."""
        weight, bias, eps, before = norm
        if bias is None:
            return self.rms_norm(x, weight, eps, round_before_weight=before)
        return self.layer_norm(x, weight, bias, eps)

    def norms(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> tuple[Tensor, ...]:
        """Each x by the norm of its own, as `norm` does."""
        return tuple(self.norm(x, norm) for x, norm in zip(xs, norms, strict=True))

    def normed_linears(
        self, x: Tensor, norm: Norm, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """`linears` of the normalised x. A backend may keep more bits of it than x's type has."""
        return self.linears(self.norm(x, norm), weights, biases)

    def rotate(self, x: Tensor, rope: RopeTable) -> Tensor:
        """Rotate the pairs (i, i + head_dim/2) of x (..., tokens, heads, head_dim)."""
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = rope.cos.unsqueeze(-2), rope.sin.unsqueeze(-2)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return rotated.to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU by its tanh approximation; Hendrycks & Gimpel 2016,
        https://arxiv.org/abs/1606.08415.
        """
        return F.gelu(x, approximate="tanh")

    def gated(self, gate: Tensor, up: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
        """silu(gate) * up (Shazeer 2020, https://arxiv.org/abs/2002.05202), or gpt-oss's SwiGLU:
        the gate bounded above, `up` bounded on both sides and offset by 1.
        """
        if isinstance(activation, SwiGLU):
            return F.silu(gate) * up
        gate = gate.clamp(max=activation.limit)
        up = up.clamp(-activation.limit, activation.limit)
        return gate * torch.sigmoid(activation.alpha * gate) * (up + 1)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        where: Where = None,
        rope: RopeTable | None = None,
    ) -> Tensor:
        """Causal attention; q and k are rotated first by `rope`, as `rotate` does.

        Over whole rows, with `where` None or Documents: q (batch, length, heads, head_dim); k, v
        (batch, length, kv_heads, head_dim). Over pages, with a LayerKV: q (tokens, heads,
        head_dim); k, v (tokens, kv_heads, head_dim), the sequences' tokens packed one after
        another; keys and values are appended to their pages, and each token attends over all that
        its sequence holds, or over the window. Returns q's shape.
        """
        if rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        if not isinstance(where, LayerKV):
            return causal_attention(q, k, v, spec, None if where is None else where.ids)
        if q.numel() == 0:
            return torch.empty_like(q)
        where.append(k, v)
        parts = []
        for queries, seen in zip(q.split(where.tables.counts), where.tables.seen, strict=True):
            keys, values = (x.to(q.dtype)[None] for x in where.read(seen))
            parts.append(causal_attention(queries[None], keys, values, spec)[0])
        return torch.cat(parts)

    def route(self, logits: Tensor, chosen: int, router: Router) -> Routing:
        """The `chosen` experts of each token of logits (tokens, experts).

        The weights are the softmax over the chosen (gpt-oss), or the chosen of the softmax over all
        (Qwen3 divides them by their sum).
        """
        logits = logits.float()
        if router is Router.TOP_K_THEN_SOFTMAX:
            top, experts = logits.topk(chosen, dim=-1)
            return Routing(experts, top.softmax(dim=-1))
        weights, experts = logits.softmax(dim=-1).topk(chosen, dim=-1)
        if router is Router.SOFTMAX_THEN_TOP_K_RENORMALIZED:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(experts, weights)

    def moe(
        self,
        x: Tensor,
        routing: Routing,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The weighted sum of each token's chosen experts, plus residual (tokens, hidden), which is
        added after `reduce`. Outputs are weighted after the second bias and summed in float32 or
        wider.

        x (tokens, hidden) -> (tokens, hidden) of `dtype`, x's own if None. Packed weights are
        unpacked piece by piece, and only for experts with tokens.
        """
        if isinstance(experts.gate_up, ExpertsKind):
            return experts.gate_up.moe(self, x, routing, experts, residual, dtype)
        result = x.dtype if dtype is None else dtype
        if x.numel() == 0:
            return torch.empty_like(x, dtype=result)
        # Choices are sorted by expert, so that each expert is read once.
        choices = routing.experts.flatten()
        order = choices.argsort(stable=True)
        counts = choices.bincount(minlength=experts.gate_up.shape[0]).tolist()
        rows = x[order // routing.experts.shape[1]]
        hidden = _linear_each(rows, counts, experts.gate_up, experts.gate_up_bias)
        hidden = self.gated(hidden[..., 0::2], hidden[..., 1::2], experts.activation)
        out = _linear_each(hidden, counts, experts.down, experts.down_bias)[order.argsort()]
        wide = torch.promote_types(x.dtype, torch.float32)
        out = out.view(*routing.experts.shape, -1).to(wide) * routing.weights[..., None].to(wide)
        out = out.sum(1).to(result)
        return out if residual is None else residual + self.reduce(out)

    def normed_moe(
        self,
        x: Tensor,
        norm: Norm,
        router: RouterWeights,
        experts: ExpertWeights,
        *,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`moe` of the normalised x (tokens, hidden), whose router reads it too. A backend may keep
        more bits of it than x's type has.
        """
        x = self.norm(x, norm)
        logits = self.linear(x, router.weight, router.bias)
        routing = self.route(logits, router.chosen, router.kind)
        return self.moe(x, routing, experts, residual=residual)

    def sample(self, logits: Tensor, table: SamplingTable) -> Tensor:
        """The id that each row (rows, vocab) of logits samples; see `sampling.sample`."""
        return sampling.sample(logits, table)

    def place(self, name: str, weight: Weight) -> Weight:  # noqa: ARG002 (for those that override)
        """Change a weight's layout, without loss and without a second copy. Called once per weight,
        at load; `name` is its module's.
        """
        return weight

    def reading(self, where: Where | PagedKV) -> AbstractContextManager[None]:  # noqa: ARG002
        """Entered for the layers of one pass, over whole rows or over a step's pages, by a backend
        that computes prompts otherwise than single tokens.
        """
        return nullcontext()

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks that share a layer; x itself on one device."""
        return x

    def recorder(self) -> Recorder | None:
        """A recorder that captures steps and replays them at less cost; None if unsupported."""
        return None


@dataclass(frozen=True)
class Recorded:
    """A captured step: `replay` runs it again in the same memory and writes `result`."""

    result: Tensor
    replay: Callable[[], None]


class Recorder(ABC):
    """Captures steps and owns their memory.

    As with a CUDA graph, everything that changes between replays must be in tensors that existed
    before the capture, and weights must keep their addresses.
    """

    buckets: tuple[int, ...]  # the batch sizes worth a capture, ascending

    @abstractmethod
    def record(self, step: Callable[[], Tensor]) -> Recorded | None:
        """Run and capture the step; None if it can never be replayed."""


def _matrix(weight: Weight) -> Matrix:
    if not isinstance(weight, Tensor | MatrixKind):
        raise TypeError(f"{type(weight).__name__} has no product")
    return weight


def _linear(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    out = weight.linear(x)
    # Under autocast the bias is wider than the product, which it must not widen.
    return out if bias is None else out + bias.to(out.dtype)


def _linear_each(x: Tensor, counts: list[int], weight: Weight, bias: Tensor | None) -> Tensor:
    """The first counts[0] rows of x through the first matrix and bias, the next counts[1] through
    the second, and so on.
    """
    # One `unbind`: in training, each index would allocate a gradient for the whole stack.
    matrices = _matrix(weight).unbind()
    biases = [None] * len(counts) if bias is None else bias.unbind()
    parts = x.split(counts)
    return torch.cat(
        [_linear(parts[i], matrices[i], biases[i]) for i in range(len(counts)) if counts[i]]
    )


REFERENCE = Backend()
