"""Dense matrices to int8, by all threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.ops import int8
from ossia.ops.cpu.native import TYPES, machine
from ossia.ops.int8 import GROUP, Int8


def quantize(weight: Tensor) -> Int8:
    """As `int8.quantize`, to the bit."""
    weight = weight.detach()
    if weight.dtype not in TYPES or not weight.is_cpu or not weight.numel():
        return int8.quantize(weight)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    rows, cols = weight.shape
    codes = torch.empty(rows, cols, dtype=torch.int8)
    scales = torch.empty(rows, -(-cols // GROUP))
    machine().quantize_int8(
        weight.data_ptr(),
        TYPES[weight.dtype],
        rows,
        cols,
        weight.stride(0),
        GROUP,
        codes.data_ptr(),
        scales.data_ptr(),
    )
    return Int8(codes, scales)
