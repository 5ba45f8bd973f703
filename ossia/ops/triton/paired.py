"""MXFP4 as the kernels read it: each byte holds a number of one block and one of the next block.

Of 64 columns, byte b pairs column i of the first 32 with column i of the other 32. Both halves
become tiles of a matrix unit without interleaving. The bytes are in the order in which a thread of
a tensor core's quad takes them, eight at a time. A byte is

    bit   7       6 5 4         3 2 1        0
          sign x  magnitude y   magnitude x  sign y

with x from the first block: in the upper byte of each half of a word, sign and magnitude of x are
where float16 has its sign and the low bits of exponent and mantissa, so that one AND decodes two
numbers, as 2**-14 times their values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops.mxfp4 import BLOCK, MXFP4, unpack
from ossia.ops.weight import MatrixKind, Tensors, Weight

GROUP = 2 * BLOCK  # columns whose numbers share bytes
LARGEST_SCALE = 128  # beyond it a scale times 2**126 is not finite, which the kernels rely on


@dataclass(frozen=True)
class PairedMXFP4(MatrixKind):
    """A stack of packed matrices (experts, rows, cols), or some of its matrices.

    pairs: uint8 (experts, rows, groups, 32); scales: uint8 (experts, rows, 2 * groups), all of them
    from 1 to 128. The last group is filled up with zeros if cols is not a multiple of 64.
    """

    pairs: Tensor
    scales: Tensor
    cols: int

    @property
    def shape(self) -> torch.Size:
        """The shape of the stack that it represents."""
        return torch.Size([*self.pairs.shape[:2], self.cols])

    @property
    def depth(self) -> int:
        """The columns with those that fill up the last group."""
        return self.pairs.shape[2] * GROUP

    def __getitem__(self, index: int) -> MXFP4:
        """One matrix, as a checkpoint stores it."""
        part = PairedMXFP4(self.pairs[index : index + 1], self.scales[index : index + 1], self.cols)
        stored = part.stored()
        return MXFP4(stored.blocks[0], stored.scales[0])

    def stored(self) -> MXFP4:
        """As a checkpoint stores it; values are the same, of a block of zeros the scale may be
        another.
        """
        codes = torch.stack(_codes(self.pairs), -2).flatten(-3)[..., : self.cols]
        even, odd = codes[..., 0::2], codes[..., 1::2]
        blocks = (even | odd << 4).unflatten(-1, (-1, BLOCK // 2))
        return MXFP4(blocks, self.scales[..., : self.cols // BLOCK].contiguous())

    def linear(self, x: Tensor) -> Tensor:
        """Raises TypeError: a stack has matrices, each with a product of its own."""
        raise TypeError(f"a stack {tuple(self.shape)} has no product with x {tuple(x.shape)}")

    def dense(self) -> Tensor:
        return unpack(self.stored(), torch.float32)

    def unbind(self) -> PairedMXFP4:
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"pairs": self.pairs, "scales": self.scales}

    def recipe(self) -> Callable[[Tensors], Weight]:
        return partial(_recipe, self.cols)


def _recipe(cols: int, tensors: Tensors) -> PairedMXFP4:
    return PairedMXFP4(tensors["pairs"], tensors["scales"], cols)


def pair(stack: MXFP4) -> PairedMXFP4 | None:
    """A stack (experts, rows, cols) in this layout; None for scales that it does not hold: NaN,
    those above 128, and 0 with numbers that are not zeros.
    """
    scales = stack.scales.clone()
    empty = (stack.blocks & 0x77 == 0).all(-1)  # a zero is a zero with any scale
    scales[empty] = 1
    if scales.numel() and not bool(((scales >= 1) & (scales <= LARGEST_SCALE)).all()):
        return None
    experts, rows, cols = stack.shape
    groups = -(-cols // GROUP)
    odd = groups * GROUP - cols
    scales = F.pad(scales, (0, odd // BLOCK), value=1)
    pairs = stack.blocks.new_empty(experts, rows, groups, BLOCK)
    for expert, blocks in enumerate(stack.blocks):
        codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-3)
        pairs[expert] = _bytes(F.pad(codes, (0, odd)).unflatten(-1, (groups, 2, BLOCK)))
    return PairedMXFP4(pairs, scales, cols)


def _bytes(codes: Tensor) -> Tensor:
    """Codes (..., 2, 32), of the first block and of the second, to bytes (..., 32)."""
    x, y = codes.unbind(-2)
    both = (x & 8) << 4 | (y & 7) << 4 | (x & 7) << 1 | y >> 3
    # Column 8 j + 2 t + o of a block goes to byte 8 t + 2 j + o.
    return both.unflatten(-1, (4, 4, 2)).transpose(-3, -2).flatten(-3)


def _codes(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `_bytes`: the codes of the first block and of the second."""
    both = pairs.unflatten(-1, (4, 4, 2)).transpose(-3, -2).flatten(-3)
    x = (both >> 4 & 8) | (both >> 1 & 7)
    y = (both & 1) << 3 | (both >> 4 & 7)
    return x, y
