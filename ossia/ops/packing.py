"""MXFP4 packed and unpacked by all cores where the native module was built, otherwise by the
definition in `ops/mxfp4.py`: the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ossia.ops import mxfp4
from ossia.ops.mxfp4 import BLOCK, MXFP4
from ossia.ops.weight import Matrix, MatrixKind, tensors_of
from ossia.ops.weight import dense as dense_of

_DTYPES = (torch.float32, torch.bfloat16)
# Elements that are packed at a time. torch's threads wait busily after an operation, so the native
# ones begin milliseconds late: smaller pieces, which would stay in the cache, lose more by that.
_PIECE = 1 << 22


@lru_cache(maxsize=1)
def native() -> ModuleType | None:
    """`ops.cpu.frozen`; None if the native module was not built."""
    try:
        from ossia.ops.cpu import frozen
    except ImportError:
        return None
    return frozen


def unpack(weight: MXFP4, dtype: torch.dtype) -> Tensor:
    """As `mxfp4.unpack`."""
    products = native()
    if products is None or dtype not in _DTYPES or not weight.blocks.is_cpu:
        return mxfp4.unpack(weight, dtype)
    return products.unpack(weight, dtype)


def dense(weight: Matrix) -> Tensor:
    """As `weight.dense`."""
    return unpack(weight, torch.float32) if isinstance(weight, MXFP4) else dense_of(weight)


def quantize(weight: Tensor) -> MXFP4:
    """As `mxfp4.quantize`."""
    products = native()
    if (
        products is None
        or weight.dtype not in _DTYPES
        or not weight.is_cpu
        or weight.ndim < 2
        or weight.shape[-1] % BLOCK
    ):
        return mxfp4.quantize(weight)
    packed, _, _ = products.pack(weight.detach().flatten(0, -2))
    *lead, cols = weight.shape
    blocks = packed.blocks.view(*lead, cols // BLOCK, BLOCK // 2)
    return MXFP4(blocks, packed.scales.view(*lead, cols // BLOCK))


def quantize_matrix(weight: Matrix) -> tuple[MXFP4, float, float]:
    """A matrix (rows, cols) of any kind, packed from its values in float32; the sum of the squares
    of what rounding changes, and that of the values' squares.

    It is computed a few rows at a time. Raises ValueError as `mxfp4.quantize` does.
    """
    rows, cols = weight.shape
    on: Any = {"dtype": torch.uint8, "device": next(iter(tensors_of(weight).values())).device}
    blocks = torch.empty(rows, cols // BLOCK, BLOCK // 2, **on)
    scales = torch.empty(rows, cols // BLOCK, **on)
    lost = total = 0.0
    step = max(1, _PIECE // cols)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        values = dense(_rows(weight, piece))
        packed, changed, all_of = _measured(values)
        blocks[piece], scales[piece] = packed.blocks, packed.scales
        lost, total = lost + changed, total + all_of
    return MXFP4(blocks, scales), lost, total


def _rows(weight: Matrix, rows: slice) -> Matrix:
    part = weight[rows]
    assert isinstance(part, Tensor | MatrixKind)
    return part


def _measured(values: Tensor) -> tuple[MXFP4, float, float]:
    products = native()
    if products is not None and values.is_cpu and values.shape[1] % BLOCK == 0:
        return products.pack(values)
    packed = mxfp4.quantize(values)
    change = (packed.dense() - values).square().sum()
    return packed, float(change), float(values.square().sum())
