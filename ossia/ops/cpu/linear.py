"""Dense matrices times vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.cpu.native import TYPES, address, is_native, machine
from ossia.ops.int8 import GROUP, Int8
from ossia.ops.weight import Weight


class Dense(Backend):
    """Native products with dense and int8 matrices."""

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
            or 0 in weight.shape
            or not (tokens := x.numel() // weight.shape[1])
            # A wider result is the sums themselves, and nothing is added to them.
            or not (
                out_dtype is x.dtype or (out_dtype is torch.float32 and bias is residual is None)
            )
        ):
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        # Names keep what may have been copied alive for the length of the call.
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        residual = None if residual is None else residual.contiguous()
        rows, cols = weight.shape
        shape = (*x.shape[:-1], rows)
        assert x.shape[-1] == cols
        assert bias is None or bias.shape == (rows,)
        assert residual is None or residual.shape == shape
        out = torch.empty(shape, dtype=out_dtype)
        kind = TYPES[x.dtype]
        if isinstance(weight, Int8):
            codes, scales = _whole(weight)
            machine().linear_int8(
                codes.data_ptr(),
                scales.data_ptr(),
                GROUP,
                address(bias),
                address(residual),
                rows,
                cols,
                x.data_ptr(),
                out.data_ptr(),
                kind,
                TYPES[out_dtype],
                tokens,
            )
            return out
        assert isinstance(weight, Tensor)
        stride, transposed = _lie(weight)
        machine().linear(
            weight.data_ptr(),
            kind,
            address(bias),
            address(residual),
            rows,
            cols,
            stride,
            transposed,
            x.data_ptr(),
            out.data_ptr(),
            kind,
            TYPES[out_dtype],
            tokens,
        )
        return out

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.linears; two or three matrices that lie alike in one call."""
        if not x.numel() or not 2 <= len(weights) <= 3:
            return super().linears(x, weights, biases)
        if isinstance(weights[0], Int8):
            outs = _linears_int8(x, weights, biases)
            return super().linears(x, weights, biases) if outs is None else outs
        cols = x.shape[-1]
        tokens = x.numel() // cols
        x = x.contiguous()
        transposed = None
        outs, arguments, kept = [], [], []
        for weight, bias in zip(weights, biases, strict=True):
            if (
                not isinstance(weight, Tensor)
                or not is_native(x, weight, bias)
                or 1 not in weight.stride()
            ):
                return super().linears(x, weights, biases)
            rows, width = weight.shape
            stride, lies = _lie(weight)
            if transposed not in (None, lies):
                return super().linears(x, weights, biases)
            transposed = lies
            bias = None if bias is None else bias.contiguous()
            assert width == cols
            assert bias is None or bias.shape == (rows,)
            out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
            outs.append(out)
            kept.append(bias)
            arguments += (weight.data_ptr(), address(bias), rows, stride, out.data_ptr())
        if len(weights) == 2:
            arguments += (0, 0, 0, 0, 0)
        machine().linears(x.data_ptr(), TYPES[x.dtype], tokens, cols, bool(transposed), *arguments)
        return tuple(outs)

    def quantize(self, weight: Tensor) -> Int8:
        """As Backend.quantize, to the bit, by all threads."""
        weight = weight.detach()
        if weight.dtype not in TYPES or not weight.is_cpu or not weight.numel():
            return super().quantize(weight)
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


def _linears_int8(
    x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
) -> tuple[Tensor, ...] | None:
    """None for matrices that are not all int8."""
    cols = x.shape[-1]
    x = x.contiguous()
    outs, arguments, kept = [], [], []
    for weight, bias in zip(weights, biases, strict=True):
        if (
            not isinstance(weight, Int8)
            or not weight.codes.is_cpu
            or not is_native(x, bias)
            or 0 in weight.shape
        ):
            return None
        rows, width = weight.shape
        codes, scales = _whole(weight)
        bias = None if bias is None else bias.contiguous()
        assert width == cols
        assert bias is None or bias.shape == (rows,)
        out = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
        outs.append(out)
        kept += (codes, scales, bias)
        arguments += (codes.data_ptr(), scales.data_ptr(), address(bias), rows, out.data_ptr())
    if len(weights) == 2:
        arguments += (0, 0, 0, 0, 0)
    tokens = x.numel() // cols
    machine().linears_int8(x.data_ptr(), TYPES[x.dtype], tokens, cols, GROUP, *arguments)
    return tuple(outs)


def _whole(weight: Int8) -> tuple[Tensor, Tensor]:
    """Codes and scales, without gaps."""
    rows, cols = weight.shape
    assert weight.scales.dtype is torch.float32
    assert weight.scales.shape == (rows, -(-cols // GROUP))
    return weight.codes.contiguous(), weight.scales.contiguous()


def _is_native_weight(x: Tensor, weight: Weight) -> bool:
    if isinstance(weight, Int8):
        return weight.codes.is_cpu
    return isinstance(weight, Tensor) and is_native(x, weight) and 1 in weight.stride()


def _lie(weight: Tensor) -> tuple[int, bool]:
    """Elements between two rows; or between two columns, and True, where a column is what lies
    together, as GPT-2's do.
    """
    rows, cols = weight.stride()
    return (rows, False) if cols == 1 else (cols, True)
