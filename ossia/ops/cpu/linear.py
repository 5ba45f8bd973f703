"""Dense matrices times vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.ops import _native
from ossia.ops.backend import Backend
from ossia.ops.cpu.native import DTYPES, is_native, machine
from ossia.ops.int8 import GROUP, Int8
from ossia.ops.weight import Weight


class Dense(Backend):
    """Native products with dense and int8 matrices, and rows of an embedding."""

    def rounds(self) -> bool:
        """Whether products with quantized weights may round activations to int8 now."""
        return False

    def embed(self, ids: Tensor, table: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """As Backend.embed."""
        if (
            not is_native(table, residual)
            or ids.dtype is not torch.int64
            or not ids.is_cpu
            or not table.numel()
            or table.stride(1) != 1
        ):
            return super().embed(ids, table, residual=residual)
        shape = (*ids.shape, table.shape[1])
        if residual is not None and residual.shape != shape:  # rows of one text for each of a batch
            return super().embed(ids, table, residual=residual)
        ids = ids.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty(shape, dtype=table.dtype)
        machine().embed(ids, table, out, residual)
        return out

    def linear(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As Backend.linear."""
        out_dtype = x.dtype if dtype is None else dtype
        if (
            not _is_native_weight(x, weight)
            or not is_native(x, bias, residual)
            # A wider result is the sums themselves, and nothing is added to them.
            or not (
                out_dtype is x.dtype or (out_dtype is torch.float32 and bias is residual is None)
            )
        ):
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=out_dtype)
        rounds = isinstance(weight, Int8) and self.rounds()
        machine().linear(x, _matrix(weight, bias), out, residual, rounds)
        return out

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.linears; matrices that are laid out alike in one call."""
        if not _are_native(x, weights, biases):
            return super().linears(x, weights, biases)
        x, lead, dtype = x.contiguous(), x.shape[:-1], x.dtype
        outs = [torch.empty((*lead, weight.shape[0]), dtype=dtype) for weight in weights]
        rounds = isinstance(weights[0], Int8) and self.rounds()
        machine().linears(x, list(map(_matrix, weights, biases)), outs, rounds)
        return tuple(outs)

    def quantize(self, weight: Tensor) -> Int8:
        """As Backend.quantize, to the bit, by all threads."""
        weight = weight.detach()
        if weight.dtype not in DTYPES or not weight.is_cpu or not weight.numel():
            return super().quantize(weight)
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        rows, cols = weight.shape
        codes = torch.empty(rows, cols, dtype=torch.int8)
        scales = torch.empty(rows, -(-cols // GROUP), dtype=torch.float32)
        machine().quantize_int8(weight, codes, scales, GROUP)
        return Int8(codes, scales)


# Made for each call: it takes a microsecond, and a tensor's memory may have moved since the last.
def _matrix(weight: Weight, bias: Tensor | None) -> _native.Matrix:
    bias = None if bias is None else bias.contiguous()
    if isinstance(weight, Int8):
        codes, scales = weight.codes.contiguous(), weight.scales.contiguous()
        return _native.Matrix(codes, bias, scales, GROUP)
    assert isinstance(weight, Tensor)
    return _native.Matrix(weight, bias)


def _is_native_weight(x: Tensor, weight: Weight) -> bool:
    if isinstance(weight, Int8):
        return weight.codes.is_cpu and 0 not in weight.shape
    return (
        isinstance(weight, Tensor)
        and is_native(x, weight)
        and 1 in weight.stride()
        and 0 not in weight.shape
    )


def _are_native(x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> bool:
    """Whether all can be multiplied in one call: of one kind, and all transposed or none."""
    if isinstance(weights[0], Int8):
        same = all(isinstance(weight, Int8) and _is_native_weight(x, weight) for weight in weights)
        return same and is_native(x, *biases)
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(dense) < len(weights) or not is_native(x, *dense, *biases):
        return False
    strides = [weight.stride() for weight in dense]
    if not all(columns == 1 for _, columns in strides) and not all(
        rows == 1 != columns for rows, columns in strides
    ):
        return False
    return all(weight.numel() for weight in dense)
