"""MXFP4, the OCP Microscaling format: 32 4-bit values share a power of two, packed until used.

Open Compute Project, Microscaling Formats (MX) v1.0, section 5. An element is E2M1 (sign, two
exponent bits, one mantissa bit); a scale is E8M0, 2**(byte - 127), and the byte 255 is NaN. Two
elements share a byte, the even one in the low nibble.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ossia.ops import frozen
from ossia.ops.weight import MatrixKind, Tensors, Weight

BLOCK = 32
NAN_SCALE = 255
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LUT = MAGNITUDES + tuple(-m for m in MAGNITUDES)
_LARGEST_EXPONENT = 2  # of an element: 6 = 1.5 * 2**2
_BIAS = 127
_PIECE = 1 << 17  # elements that are quantized at a time


@dataclass(frozen=True)
class MXFP4(MatrixKind):
    """A packed matrix, or a stack of them.

    blocks: uint8 (..., rows, cols/32, 16); scales: uint8 (..., rows, cols/32).
    """

    blocks: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.blocks.shape != (*self.scales.shape, BLOCK // 2):
            raise ValueError(
                f"blocks {tuple(self.blocks.shape)} are not {BLOCK // 2} bytes for each of the "
                f"scales {tuple(self.scales.shape)}"
            )
        if not self.blocks.dtype == self.scales.dtype == torch.uint8:
            raise ValueError(
                f"blocks and scales are uint8, not {self.blocks.dtype} and {self.scales.dtype}"
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of the matrix that it represents, (..., rows, cols)."""
        *lead, groups, _ = self.blocks.shape
        return torch.Size([*lead, groups * BLOCK])

    def __getitem__(self, index: int | slice) -> MXFP4:
        """One matrix of a stack, or some rows of a matrix."""
        return MXFP4(self.blocks[index], self.scales[index])

    def linear(self, x: Tensor) -> Tensor:
        """See MatrixKind; only x gets a gradient."""
        return frozen.linear(x, self, unpack)

    def dense(self) -> Tensor:
        return unpack(self, torch.float32)

    def unbind(self) -> MXFP4:
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {"blocks": self.blocks, "scales": self.scales}

    def recipe(self) -> Callable[[Tensors], Weight]:
        return _recipe


def _recipe(tensors: Tensors) -> MXFP4:
    return MXFP4(tensors["blocks"], tensors["scales"])


@lru_cache(maxsize=16)
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 2): the two elements of each byte."""
    low = torch.tensor([LUT[byte & 15] for byte in range(256)])
    high = torch.tensor([LUT[byte >> 4] for byte in range(256)])
    return torch.stack([low, high], dim=1).to(dtype).to(device)


@lru_cache(maxsize=16)
def _powers(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256,): the scale of each byte. Computed in doubles, because 2**-127 is subnormal in float32,
    and on the CPU, because some devices have no doubles.
    """
    powers = [2.0 ** (byte - _BIAS) for byte in range(NAN_SCALE)] + [float("nan")]
    return torch.tensor(powers, dtype=torch.float64).to(dtype).to(device)


def unpack(weight: MXFP4, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix (..., rows, cols) of a packed one; exact in bfloat16 and float32."""
    blocks, scales = weight.blocks, weight.scales
    # One look-up per byte: its two elements are read as one word of twice the width.
    # index_select is five times as fast as indexing here.
    word = {2: torch.int32, 4: torch.int64, 8: torch.complex128}[dtype.itemsize]
    pairs = _pairs(dtype, blocks.device).view(word).squeeze(-1)
    values = pairs.index_select(0, blocks.flatten().int()).view(dtype).view(-1, BLOCK)
    values *= _powers(dtype, scales.device).index_select(0, scales.flatten().int())[:, None]
    return values.view(weight.shape)


def quantize(weight: Tensor) -> MXFP4:
    """Pack (..., rows, cols), cols a multiple of 32, by the OCP MX rule.

    A block's scale is 2**(floor(log2(largest magnitude)) - 2); elements are rounded to nearest,
    ties to even, and saturate at 6. Raises ValueError for a wrong width and for NaN or infinity,
    which the format cannot hold.
    """
    *lead, cols = weight.shape
    if cols % BLOCK:
        raise ValueError(f"MXFP4 packs rows whose length is a multiple of {BLOCK}, not {cols}")
    # Pieces that stay in the cache are three times as fast as the whole at once.
    pieces = weight.detach().reshape(-1, BLOCK).split(_PIECE // BLOCK)
    blocks, scales = zip(*map(_quantize_blocks, pieces), strict=True)
    groups = (*lead, cols // BLOCK)
    return MXFP4(torch.cat(blocks).view(*groups, BLOCK // 2), torch.cat(scales).view(groups))


def _quantize_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (blocks, 32) to bytes (blocks, 16) and scales (blocks,)."""
    values = values.float()
    largest = values.abs().amax(dim=-1)
    if not torch.isfinite(largest).all():
        raise ValueError("MXFP4 cannot hold NaN or infinity")
    # A float32's exponent field is floor(log2) + 127; that of zeros and subnormals is 0.
    exponent = (largest.view(torch.int32) >> 23) - _BIAS
    exponent = (exponent - _LARGEST_EXPONENT).clamp(-_BIAS, _BIAS)
    inverse = _powers(torch.float32, values.device).index_select(0, _BIAS - exponent)
    size = values.abs() * inverse[:, None]  # below 8, and exact
    # The codes count up in steps of 1/2 to 2, of 1 to 4 and of 2 to 6; round() takes ties to even.
    code = torch.where(size < 2, (2 * size).round(), size.round() + 2)
    code = torch.where(size < 4, code, (size / 2).round() + 4).clamp(max=7).to(torch.uint8)
    code |= values.signbit().to(torch.uint8) << 3
    return code[:, 0::2] | code[:, 1::2] << 4, (exponent + _BIAS).to(torch.uint8)
