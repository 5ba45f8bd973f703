"""Cross-entropy of a vocabulary that never holds the logits of all tokens at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # torch's own mark for a target that does not count

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
    kept = targets != IGNORED
    if not kept.all():
        hidden, targets = hidden[kept], targets[kept]
    device = hidden.device.type
    narrow = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if narrow else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, _Loss(count, z_loss, dtype))


@dataclass(frozen=True)
class _Loss:
    """The sum over the targets is divided by `count`; products are in `dtype`."""

    count: float
    z_loss: float
    dtype: torch.dtype


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
        narrow = weight.to(dtype)
        sums = torch.zeros(2, dtype=wide, device=hidden.device)  # cross-entropy, squared lse
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        step = max(1, CHUNK // len(weight))
        for start in range(0, len(hidden), step):
            chunk = hidden[start : start + step].to(dtype)
            target = targets[start : start + step, None]
            logits = (chunk @ narrow.T).to(wide)
            chosen = logits.gather(1, target)
            logits = F.log_softmax(logits, dim=-1)
            losses = logits.gather(1, target)
            lse = chosen - losses
            sums += torch.stack([-losses.sum(), lse.square().sum()])
            if d_hidden is None and d_weight is None:
                continue
            # Of lse every logit's gradient is its probability.
            slope = logits.exp_()
            if z_loss:
                slope.mul_(1 + 2 * z_loss * lse)
            slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
            slope = slope.mul_(1 / count).to(dtype)
            if d_hidden is not None:
                d_hidden[start : start + step] = slope @ narrow
            if d_weight is None:
                continue
            if d_weight.dtype == dtype:
                d_weight.addmm_(slope.T, chunk)
            else:
                d_weight += slope.T @ chunk
        ctx.save_for_backward(d_hidden, d_weight)
        loss = sums[0] / count
        ctx.mark_non_differentiable(loss)
        return loss + z_loss * sums[1] / count, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slopes = [None if d is None else d * gradient.to(d.dtype) for d in ctx.saved_tensors]
        return *slopes, None, None
