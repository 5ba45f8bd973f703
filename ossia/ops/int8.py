"""int8 weights: one code per element, and one scale per group of columns of a row.

A weight is code * scale, codes from -127 to 127, symmetric, as in LLM.int8() (Dettmers et al. 2022,
https://arxiv.org/abs/2208.07339) but with groups shorter than a row, so that a large element
reduces the precision of its neighbours only. 8.25 bits per weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.ops.weight import MatrixKind, Tensors, Weight

GROUP = 128
ELEMENT_BYTES = 1 + 4 / GROUP  # with its share of a scale
_LARGEST = 127
_PIECE = 1 << 18  # elements that are quantized at a time
_UNPACKED = 1 << 20  # elements that are unpacked at a time: few enough to stay in the cache


@dataclass(frozen=True)
class Int8(MatrixKind):
    """A quantized matrix.

    codes: int8 (rows, cols); scales: float32 (rows, ceil(cols / GROUP)).
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def __getitem__(self, index: slice) -> Int8:
        """Some rows."""
        return Int8(self.codes[index], self.scales[index])

    def linear(self, x: Tensor) -> Tensor:
        """See MatrixKind. Products are in float32: bfloat16 cannot hold a weight's value."""
        rows, cols = self.shape
        step = max(1, _UNPACKED // cols)
        pieces = [self[i : i + step] for i in range(0, rows, step)]
        wide = x.float()
        return torch.cat([F.linear(wide, p.dense()).to(x.dtype) for p in pieces], dim=-1)

    def dense(self) -> Tensor:
        """The matrix (rows, cols) in float32."""
        rows, cols = self.shape
        groups = self.scales.shape[1]
        spread = self.scales[..., None].expand(rows, groups, GROUP).reshape(rows, -1)
        return self.codes * spread[:, :cols]

    def unbind(self) -> tuple[Int8, ...]:
        raise TypeError("int8 holds single matrices, not stacks")

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales}

    def recipe(self) -> Callable[[Tensors], Weight]:
        return _recipe


def _recipe(tensors: Tensors) -> Int8:
    return Int8(tensors["codes"], tensors["scales"])


def quantize(weight: Tensor) -> Int8:
    """The nearest codes of a matrix (rows, cols); the largest element of a group becomes 127.

    It works on pieces of rows, so it needs only a few megabytes besides the result, even for a
    mapped file. Raises ValueError for NaN or infinity.
    """
    rows, cols = weight.shape
    groups = -(-cols // GROUP)
    codes = torch.empty(rows, cols, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows, groups, device=weight.device)
    step = max(1, _PIECE // max(cols, 1))
    for first in range(0, rows, step):
        piece = slice(first, first + step)
        values = weight.detach()[piece].float()
        padded = torch.nn.functional.pad(values, (0, groups * GROUP - cols))
        grouped = padded.view(len(values), groups, GROUP)
        largest = grouped.abs().amax(-1)
        if not torch.isfinite(largest).all():
            raise ValueError("int8 cannot hold NaN or infinity")
        scales[piece] = largest / _LARGEST
        # A group of zeros has scale 0 and codes 0.
        steps = torch.tensor(float(_LARGEST)) / largest  # a Python number over it would round twice
        inverse = torch.where(largest > 0, steps, 0.0).clamp(max=_FINITE)
        whole = (grouped * inverse[..., None]).round().clamp(-_LARGEST, _LARGEST)
        codes[piece] = whole.view(len(values), -1)[:, :cols].to(torch.int8)
    return Int8(codes, scales)


_FINITE = torch.finfo(torch.float32).max
