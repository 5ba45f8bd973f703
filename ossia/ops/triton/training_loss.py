"""The loss of a chunk of logits, and its gradient in their place, in two passes over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.ops.triton.launch import launch, power_of_2

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_MOST_ELEMENTS = 1 << 28  # of a chunk: more gain nothing
_SHARE = 64  # of a card's memory, in elements a byte


def chunk_elements(device: torch.device) -> int:
    """Logits to compute at a time on a card: enough that launches and partial sums cost little, in
    a few hundredths of its memory.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    return min(_MOST_ELEMENTS, 1 << (total // _SHARE).bit_length() - 1)


def softmax_losses(
    logits: Tensor, targets: Tensor, count: float, z_loss: float, *, slopes: bool
) -> Tensor:
    """float32 (2,): the summed cross-entropy of logits (rows, vocab) and the summed squares of
    their log-sum-exp. With `slopes`, logits become the gradient of (cross-entropy + z_loss *
    squares) / count. Negative targets do not count.
    """
    rows, vocab = logits.shape
    parts = logits.new_empty(2, rows, dtype=torch.float32)
    block = min(4096, power_of_2(vocab))
    launch(
        _softmax_losses, (rows,), logits, targets, parts, vocab, logits.stride(0), 1 / count,
        2 * z_loss, BLOCK=block, SLOPES=slopes, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return parts.sum(1)


@triton.jit
def _softmax_losses(
    logits, targets, parts, vocab, stride, scale, twice_z,
    BLOCK: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    target = tl.load(targets + row)
    own = logits + row.to(tl.int64) * stride
    lane = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, vocab, BLOCK):
        x = tl.load(own + i + lane, mask=i + lane < vocab, other=float("-inf")).to(tl.float32)
        x = x * _LOG2_E
        higher = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
        total = total * tl.exp2(largest - higher) + tl.exp2(x - higher)
        largest = higher
    top = tl.max(largest, 0)
    lse = top + tl.log2(tl.sum(total * tl.exp2(largest - top), 0))
    counts = target >= 0
    chosen = tl.load(own + tl.maximum(target, 0)).to(tl.float32)
    natural = lse * _LN_2
    tl.store(parts + row, tl.where(counts, natural - chosen, 0.0))
    tl.store(parts + rows + row, tl.where(counts, natural * natural, 0.0))
    if SLOPES:
        tl.debug_barrier()  # every warp has loaded `chosen`, whose place one of them overwrites
        weight = tl.where(counts, scale * (1 + twice_z * natural), 0.0)
        less = tl.where(counts, scale, 0.0)
        for i in range(0, vocab, BLOCK):
            mask = i + lane < vocab
            x = tl.load(own + i + lane, mask=mask, other=float("-inf")).to(tl.float32)
            slope = weight * tl.exp2(x * _LOG2_E - lse)
            slope = tl.where(counts, slope, 0.0)  # also where a logit is NaN
            slope = slope - tl.where(i + lane == target, less, 0.0)
            tl.store(own + i + lane, slope.to(logits.dtype.element_ty), mask=mask)
