"""Dense matrices times few vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.ops import reference
from ossia.ops.cpu.native import TYPES, Linear, address, is_native, machine
from ossia.ops.reference import Weight

# Beyond these a matrix product is bound by arithmetic, and torch's is the faster one.
_LINEAR_TOKENS = 16


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.linear`."""
    out_dtype = x.dtype if dtype is None else dtype
    if (
        not isinstance(weight, Tensor)
        or not is_native(x, weight, bias, residual)
        or not 0 < (tokens := x.numel() // weight.shape[1]) <= _LINEAR_TOKENS
        # A wider result is the sums themselves, and nothing is added to them.
        or not (out_dtype is x.dtype or (out_dtype is torch.float32 and bias is residual is None))
        or 1 not in weight.stride()
    ):
        return reference.linear(x, weight, bias, residual=residual, dtype=dtype)
    x = x.contiguous()
    # Names keep what may have been copied alive for the length of the call.
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.contiguous()
    out, task = _task(x, weight, bias, residual, out_dtype)
    machine().linear([task], x.data_ptr(), TYPES[x.dtype], tokens)
    return out


def linears(
    x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """As `reference.linears`."""
    tokens = x.numel() // x.shape[-1]
    if not 0 < tokens <= _LINEAR_TOKENS or not is_native(x, *biases):
        return reference.linears(x, weights, biases)
    x = x.contiguous()
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    outs, tasks = [], []
    for weight, bias in zip(weights, biases, strict=True):
        if not isinstance(weight, Tensor) or not is_native(x, weight) or 1 not in weight.stride():
            return tuple(map(linear, [x] * len(weights), weights, biases))
        out, task = _task(x, weight, bias, None, x.dtype)
        outs.append(out)
        tasks.append(task)
    machine().linear(tasks, x.data_ptr(), TYPES[x.dtype], tokens)
    return tuple(outs)


def _task(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Linear]:
    """Where the product goes, and what is to be computed."""
    rows, cols = weight.shape
    along_rows, along_cols = weight.stride()
    transposed = along_cols != 1  # as GPT-2's weights are
    shape = (*x.shape[:-1], rows)
    assert x.shape[-1] == cols
    assert bias is None or bias.shape == (rows,)
    assert residual is None or residual.shape == shape
    out = torch.empty(shape, dtype=dtype)
    return out, Linear(
        weight.data_ptr(),
        TYPES[weight.dtype],
        address(bias),
        address(residual),
        rows,
        cols,
        along_cols if transposed else along_rows,
        transposed,
        out.data_ptr(),
        TYPES[dtype],
    )
