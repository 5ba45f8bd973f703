"""Products with matrices and with their transposes, their gradients, the loss of logits, and MXFP4
packed and unpacked, natively.

These are what training uses besides torch: no backend's operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.config import ClampedSwiGLU, SwiGLU
from ossia.ops import _native
from ossia.ops.cpu.native import DTYPES, training_machine
from ossia.ops.mxfp4 import BLOCK, MXFP4

__all__ = [
    "Stack",
    "activate",
    "activation_gradient",
    "grouped",
    "pack",
    "softmax_losses",
    "stack_of",
    "unpack",
    "weight_gradient",
]

Stack = _native.Stack


def stack_of(weight: Tensor | MXFP4, bias: Tensor | None = None) -> Stack | None:
    """A matrix, or a stack of them, as `grouped` takes it; None if no kernel reads it.

    bias (experts, rows), of the dtype of the products.
    """
    if isinstance(weight, MXFP4):
        if not weight.blocks.is_cpu or 0 in weight.shape:
            return None
        blocks, scales = weight.blocks, weight.scales
        if len(weight.shape) == 2:
            blocks, scales = blocks[None], scales[None]
        return Stack(blocks.contiguous(), bias, scales.contiguous())
    weight = weight.detach()
    weight = weight[None] if weight.ndim == 2 else weight
    if weight.dtype not in DTYPES or not weight.is_cpu or 0 in weight.shape:
        return None
    return Stack(weight, bias) if 1 in weight.stride()[1:] else None


def grouped(x: Tensor, counts: Tensor, stack: Stack, *, turned: bool = False) -> Tensor:
    """The first counts[0] rows of x (tokens, cols) times the first matrix (rows, cols) of a stack,
    the next counts[1] rows times the second, and so on, plus biases -> (tokens, rows). If `turned`,
    x (tokens, rows) times the transposed matrices, without biases -> (tokens, cols).

    int64 counts (experts,). A packed or bfloat16 stack takes x in float32 or bfloat16; a float32
    stack takes float32. As `Backend.linear` natively, products in bfloat16 err by 1e-5 to 3e-4.
    """
    rows, cols = (stack.scales if stack.scales is not None else stack.weight).shape[1:3]
    cols = cols * BLOCK if stack.scales is not None else cols
    out = torch.empty(len(x), cols if turned else rows, dtype=x.dtype)
    training_machine().grouped(x.contiguous(), counts, stack, out, turned)
    return out


def weight_gradient(
    gradient: Tensor,
    x: Tensor,
    counts: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    *,
    add: bool = False,
) -> None:
    """Write the gradients of the matrices that `grouped` multiplied, of x (tokens, cols) and the
    gradient (tokens, rows) of its result, both bfloat16: float32 out (experts, rows, cols), and
    bias (experts, rows) of the biases. If `add`, they are added to what these hold.
    """
    gradient, x = gradient.contiguous(), x.contiguous()
    training_machine().weight_gradient(gradient, x, counts, out, bias, add)


def softmax_losses(
    logits: Tensor, targets: Tensor, scale: float, z_loss: float, *, slopes: bool
) -> Tensor:
    """float32 (2,): the summed cross-entropy of logits (rows, vocab), with int64 targets (rows,),
    and the summed squares of their log-sum-exp. With `slopes`, logits become scale times the
    gradient of the first plus z_loss times the second.
    """
    losses = torch.empty(len(logits), 2)
    training_machine().softmax_loss(logits, targets.contiguous(), losses, scale, z_loss, slopes)
    return losses.sum(0)


def activate(pairs: Tensor, activation: SwiGLU | ClampedSwiGLU) -> Tensor:
    """`Backend.gated` of alternating gates and ups (tokens, 2 * units), units a multiple of 32."""
    out = pairs.new_empty(len(pairs), pairs.shape[1] // 2)
    training_machine().gate_pairs(pairs, out, *_settings(activation))
    return out


def activation_gradient(
    pairs: Tensor, gradient: Tensor, activation: SwiGLU | ClampedSwiGLU
) -> Tensor:
    """The gradient of `activate`'s pairs by that of its result (tokens, units)."""
    out = torch.empty_like(pairs)
    training_machine().gate_gradient(pairs, gradient.contiguous(), out, *_settings(activation))
    return out


def _settings(activation: SwiGLU | ClampedSwiGLU) -> tuple[bool, float, float]:
    if isinstance(activation, ClampedSwiGLU):
        return True, activation.limit, activation.alpha
    return False, 0.0, 0.0


def pack(weight: Tensor) -> tuple[MXFP4, float, float]:
    """`mxfp4.quantize` of a matrix in float32 or bfloat16, to the bit, by all threads; the sum of
    the squares of what rounding changes, and that of the weight's squares.
    """
    rows, cols = weight.shape
    blocks = torch.empty(rows, cols // BLOCK, BLOCK // 2, dtype=torch.uint8)
    scales = torch.empty(rows, cols // BLOCK, dtype=torch.uint8)
    sums = torch.zeros(rows, 2, dtype=torch.float64)
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    training_machine().pack_mxfp4(weight, blocks, scales, sums)
    lost, total = sums.sum(0).tolist()
    return MXFP4(blocks, scales), lost, total


def unpack(weight: MXFP4, dtype: torch.dtype) -> Tensor:
    """`mxfp4.unpack` of a matrix or a stack, in float32 or bfloat16, by all threads."""
    out = torch.empty(weight.shape, dtype=dtype)
    blocks = weight.blocks.contiguous().flatten(0, -3)
    scales = weight.scales.contiguous().flatten(0, -2)
    training_machine().unpack_mxfp4(blocks, scales, out.view(-1, weight.shape[-1]))
    return out
