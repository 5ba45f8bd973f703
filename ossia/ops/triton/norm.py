"""Norms, one program per vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.triton.launch import begin, launch, power_of_2, runs
from ossia.ops.triton.linear_kernels import inverse_root
from ossia.ops.values import Norm

_WIDEST = 1 << 14  # numbers that one program holds in its registers


@triton.jit
def _over_root(
    x, weight, out, row, size, eps, WIDTH: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr
):
    """One vector over its root mean square, times the weight."""
    row = row.to(tl.int64) * size
    column = tl.arange(0, WIDTH)
    inside = column < size
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    begin(EARLY)
    normal = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    normal = normal * inverse_root(tl.sum(normal * normal, 0), size, eps)
    if ROUND:
        normal = normal.to(x.dtype.element_ty).to(tl.float32)
    tl.store(out + row + column, (scale * normal).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm(
    x, weight, out, size, eps, WIDTH: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr
):
    _over_root(x, weight, out, tl.program_id(0), size, eps, WIDTH, ROUND, EARLY)


@triton.jit
def _rms_norms(
    x, weight, out, more_x, more_weight, more_out, rows, size, eps,
    WIDTH: tl.constexpr, ROUND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The rows of x, then those of another tensor with a weight of its own."""
    row = tl.program_id(0)
    if row < rows:
        _over_root(x, weight, out, row, size, eps, WIDTH, ROUND, EARLY)
    else:
        _over_root(more_x, more_weight, more_out, row - rows, size, eps, WIDTH, ROUND, EARLY)


@triton.jit
def _layer_norm(x, weight, bias, out, size, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, WIDTH)
    inside = column < size
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normal = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    normal = tl.where(inside, normal - tl.sum(normal, 0) / size, 0.0)
    inverse = 1 / tl.sqrt_rn(tl.sum(normal * normal, 0) / size + eps)
    normal = normal * tl.where(inverse == 0, float("nan"), inverse)
    tl.store(out + row + column, (normal * scale + shift).to(out.dtype.element_ty), mask=inside)


class Norms(Backend):
    """Norms of vectors that fit into a program's registers."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, round_before_weight: bool
    ) -> Tensor:
        """As Backend.rms_norm."""
        if not x.numel() or x.shape[-1] > _WIDEST or not runs(x, weight):
            return super().rms_norm(x, weight, eps, round_before_weight=round_before_weight)
        x, out, options = _rows(x)
        size = x.shape[-1]
        grid = (x.numel() // size,)
        launch(
            _rms_norm, grid, x, weight.contiguous(), out, size, eps,
            ROUND=round_before_weight, **options,
        )  # fmt: skip
        return out

    def norms(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> tuple[Tensor, ...]:
        """As Backend.norms; those of queries and keys in one launch."""
        if not _alike(xs, norms):
            return super().norms(xs, norms)
        (x, out, options), (more, more_out, _) = map(_rows, xs)
        size = x.shape[-1]
        rows, more_rows = x.numel() // size, more.numel() // size
        weight, more_weight = (norm.weight.contiguous() for norm in norms)
        launch(
            _rms_norms, (rows + more_rows,), x, weight, out, more, more_weight, more_out,
            rows, size, norms[0].eps, ROUND=norms[0].round_before_weight, **options,
        )  # fmt: skip
        return out, more_out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """As Backend.layer_norm."""
        if not x.numel() or x.shape[-1] > _WIDEST or not runs(x, weight, bias):
            return super().layer_norm(x, weight, bias, eps)
        x, out, options = _rows(x)
        size = x.shape[-1]
        grid = (x.numel() // size,)
        weight, bias = weight.contiguous(), bias.contiguous()
        launch(_layer_norm, grid, x, weight, bias, out, size, eps, **options)
        return out


def _alike(xs: Sequence[Tensor], norms: Sequence[Norm]) -> bool:
    """Whether these are two RMSNorms, with a kernel, that differ in their weights alone."""
    if len(xs) != 2 or not all(x.numel() for x in xs) or any(n.bias is not None for n in norms):
        return False
    (x, more), (one, other) = xs, norms
    return (
        x.shape[-1] == more.shape[-1] <= _WIDEST
        and x.dtype == more.dtype
        and (one.eps, one.round_before_weight) == (other.eps, other.round_before_weight)
        and runs(x, more, one.weight, other.weight)
    )


def _rows(x: Tensor) -> tuple[Tensor, Tensor, dict[str, int]]:
    """x contiguous, the tensor of its results, and the options of a program that has a row."""
    x = x.contiguous()
    width = power_of_2(x.shape[-1])
    # Sixteen bytes for each thread, up to half of the threads that one program may have.
    warps = min(16, max(1, width * x.element_size() // (32 * 16)))
    return x, torch.empty_like(x), {"WIDTH": width, "num_warps": warps}
