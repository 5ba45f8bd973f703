"""What the tests of operations compute with: the same numbers each time, and on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import mxfp4
from ossia.ops.mxfp4 import MXFP4


def normal(
    *shape: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Drawn in float32."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(dtype).to(device)


def packed(*shape: int, seed: int = 0, device: torch.device | str = "cpu") -> MXFP4:
    """Matrices (..., rows, cols) of all codes, and of scales near 1/64."""
    *rows, cols = shape
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*rows, cols // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 125, (*rows, cols // 32), generator=generator, dtype=torch.uint8)
    return MXFP4(blocks.to(device), scales.to(device))


def held(base: Tensor, kind: str) -> Tensor | MXFP4:
    """A frozen matrix in float32, bfloat16 or mxfp4, as that is named."""
    if kind == "mxfp4":
        return mxfp4.quantize(base)
    return base.to(torch.bfloat16) if kind == "bfloat16" else base
