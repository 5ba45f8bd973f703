"""Cross-entropy of a vocabulary that never holds the logits of all tokens at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.ops import packing
from ossia.ops.autocast import autocast_dtype

IGNORED = -100  # torch's own mark for a target that does not count

NATIVE = (torch.float32, torch.bfloat16)
CHUNK = 1 << 24  # at a time, in elements: enough for fast products, 64 MB in float32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, count: float, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of hidden @ weight.T over `count`, with z-loss and without.

    hidden (tokens, hidden); weight (vocab, hidden); int64 targets (tokens,), of which `IGNORED`
    ones do not count. The first result is to be minimised: it adds `z_loss` times the squared
    log-sum-exp, which keeps logits from drifting (Chowdhery et al. 2022, section 5,
    https://arxiv.org/abs/2204.02311); the second has no gradient. Softmax and sums are in float32
    or wider; under autocast the products are in its dtype.
    """
    dtype = autocast_dtype(hidden)
    if not _on_card(hidden, dtype):  # whose kernel passes over ignored targets
        kept = targets != IGNORED
        if not kept.all():
            hidden, targets = hidden[kept], targets[kept]
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, _Loss(count, z_loss, dtype))


def _on_card(hidden: Tensor, dtype: torch.dtype) -> bool:
    return hidden.device.type == "cuda" and dtype is not torch.float64


@dataclass(frozen=True)
class _Loss:
    """The sum over the targets is divided by `count`; products are in `dtype`."""

    count: float
    z_loss: float
    dtype: torch.dtype


def _softmax_losses(
    logits: Tensor, targets: Tensor, of: _Loss, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """(2,): the summed cross-entropy of logits (rows, vocab), and the summed squares of their
    log-sum-exp; with `slopes` also the gradient of the loss with respect to the logits.
    """
    logits = logits.to(torch.promote_types(of.dtype, torch.float32))
    target = targets[:, None]
    chosen = logits.gather(1, target)
    logits = F.log_softmax(logits, dim=-1)
    losses = logits.gather(1, target)
    lse = chosen - losses
    sums = torch.stack([-losses.sum(), lse.square().sum()])
    if not slopes:
        return sums, None
    # Of lse every logit's gradient is its probability.
    slope = logits.exp_()
    if of.z_loss:
        slope.mul_(1 + 2 * of.z_loss * lse)
    slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
    return sums, slope.mul_(1 / of.count).to(of.dtype)


def _card_losses(
    logits: Tensor, targets: Tensor, of: _Loss, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """As _softmax_losses, by a kernel that needs no copies of the logits."""
    from ossia.ops.triton import training_loss

    sums = training_loss.softmax_losses(logits, targets, of.count, of.z_loss, slopes=slopes)
    return sums, logits if slopes else None


def _native_losses(
    logits: Tensor, targets: Tensor, of: _Loss, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """As _softmax_losses, natively and in place of the logits."""
    native = packing.native()
    assert native is not None
    sums = native.softmax_losses(logits, targets, 1 / of.count, of.z_loss, slopes=slopes)
    return sums, logits if slopes else None


class _Unembedding:
    """Products with a matrix (vocab, hidden) in another dtype; in bfloat16 on the CPU native ones,
    which are several times as fast as torch's.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._weight = weight.to(dtype)
        self._native = packing.native() if dtype is torch.bfloat16 else None
        self._stack = None if self._native is None else self._native.stack_of(self._weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) -> (rows, vocab)."""
        if self._native is None or self._stack is None:
            return hidden @ self._weight.T
        return self._native.grouped(hidden, torch.tensor([len(hidden)]), self._stack)

    def gradient(self, slope: Tensor) -> Tensor:
        """(rows, vocab) -> (rows, hidden)."""
        if self._native is None or self._stack is None:
            return slope @ self._weight
        return self._native.grouped(slope, torch.tensor([len(slope)]), self._stack, turned=True)

    def add_gradient(self, slope: Tensor, hidden: Tensor, total: Tensor) -> None:
        """Add the gradient of the matrix by logits of (rows, hidden) to the total."""
        if total.dtype == slope.dtype:
            total.addmm_(slope.T, hidden)
        elif self._native is None or self._stack is None or total.dtype is not torch.float32:
            total += slope.T @ hidden
        else:
            counts = torch.tensor([len(slope)])
            self._native.weight_gradient(slope, hidden, counts, total[None], add=True)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is computed with the loss, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        of: _Loss,
    ) -> tuple[Tensor, Tensor]:
        count, z_loss, dtype = of.count, of.z_loss, of.dtype
        wide = torch.promote_types(dtype, torch.float32)
        unembedding = _Unembedding(weight, dtype)
        sums = torch.zeros(2, dtype=wide, device=hidden.device)  # cross-entropy, squared lse
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        slopes = d_hidden is not None or d_weight is not None
        chunk_losses, elements = _softmax_losses, CHUNK
        if _on_card(hidden, dtype):
            from ossia.ops.triton import training_loss

            chunk_losses = _card_losses
            elements = training_loss.chunk_elements(hidden.device)
        elif dtype in NATIVE and hidden.device.type == "cpu" and packing.native() is not None:
            chunk_losses = _native_losses
        step = max(1, elements // len(weight))
        for start in range(0, len(hidden), step):
            chunk = hidden[start : start + step].to(dtype)
            target = targets[start : start + step]
            part, slope = chunk_losses(unembedding.logits(chunk), target, of, slopes)
            sums += part
            if slope is None:
                continue
            if d_hidden is not None:
                d_hidden[start : start + step] = unembedding.gradient(slope)
            if d_weight is not None:
                unembedding.add_gradient(slope, chunk, d_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        loss = sums[0] / count
        ctx.mark_non_differentiable(loss)
        return loss + z_loss * sums[1] / count, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slopes = [None if d is None else d * gradient.to(d.dtype) for d in ctx.saved_tensors]
        return *slopes, None, None
