"""Dense matrices times vectors."""

from __future__ import annotations

from torch import Tensor

from ossia.ops import reference
from ossia.ops.cpu.native import TYPES, address, is_native, machine
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.reference import Weight


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear`."""
    if (
        isinstance(weight, MXFP4)
        or 1 not in weight.stride()
        or not is_native(x, weight, bias)
        or not (tokens := x.numel() // weight.shape[1])
    ):
        return reference.linear(x, weight, bias)
    rows, cols = weight.shape
    transposed = weight.stride(1) != 1  # as GPT-2's weights are
    assert x.shape[-1] == cols
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty((*x.shape[:-1], rows))
    kind = TYPES[x.dtype]
    machine().linear(
        weight.data_ptr(),
        kind,
        address(bias),
        rows,
        cols,
        weight.stride(1 if transposed else 0),
        transposed,
        x.data_ptr(),
        out.data_ptr(),
        kind,
        tokens,
    )
    return out
