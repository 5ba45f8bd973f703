"""Products with dense and int8 matrices, and rows of an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ossia.ops.backend import Backend
from ossia.ops.int8 import GROUP, Int8
from ossia.ops.triton.launch import card, ceil_div, launch, launches_on, power_of_2, runs
from ossia.ops.triton.linear_kernels import matrices, vectors
from ossia.ops.values import Norm
from ossia.ops.weight import Weight

_VECTORS = 4  # tokens up to which a product is sums of vectors, not tiles
_NORMED = 2  # tokens up to which a norm's sums leave registers for loads on their way
_FEW = 16  # tokens up to which cuBLAS is further from the speed of memory than the kernels
_CHUNK_BYTES = 512  # of a row, that a warp loads at once
_WARPS = 4
_MOST_AT_ONCE = 3


@triton.jit
def _embed(ids, table, residual, out, size, WIDTH: tl.constexpr, RESIDUAL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < size
    numbers = tl.load(table + tl.load(ids + row) * size + column, mask=inside, other=0.0)
    if RESIDUAL:
        added = tl.load(residual + row * size + column, mask=inside, other=0.0)
        numbers = (numbers.to(tl.float32) + added.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * size + column, numbers, mask=inside)


class Dense(Backend):
    """Products of up to 16 tokens, int8 of any number, and logits in float32."""

    def place(self, name: str, weight: Weight) -> Weight:
        """As Backend.place: matrices that a checkpoint holds transposed get contiguous rows."""
        weight = super().place(name, weight)
        if isinstance(weight, Tensor) and weight.ndim == 2 and launches_on(weight.device):
            return weight.contiguous()
        return weight

    def embed(self, ids: Tensor, table: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """As Backend.embed. Ids outside the table are not noticed."""
        shape = (*ids.shape, table.shape[1])
        if (
            not ids.numel()
            or not table.is_contiguous()
            or ids.dtype is not torch.int64
            or not runs(table, ids, residual)
            or (residual is not None and (residual.shape, residual.dtype) != (shape, table.dtype))
        ):
            return super().embed(ids, table, residual=residual)
        out = torch.empty(shape, dtype=table.dtype, device=table.device)
        size = table.shape[1]
        width = min(1024, power_of_2(size))
        added = table if residual is None else residual.contiguous()
        launch(
            _embed, (ids.numel(), ceil_div(size, width)), ids.contiguous(), table, added, out,
            size, WIDTH=width, RESIDUAL=residual is not None,
        )  # fmt: skip
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
        """As Backend.linear; sums are rounded once."""
        result = x.dtype if dtype is None else dtype
        fused = residual is None or type(self).reduce is Backend.reduce
        if not fused or not _suits(x, [weight], [bias], residual, result):
            return super().linear(x, weight, bias, residual=residual, dtype=dtype)
        return _product(x, [weight], [bias], residual, result)[0]

    def linears(
        self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.linears, up to three matrices in one launch."""
        if len(weights) > _MOST_AT_ONCE or not _suits(x, weights, biases, None, x.dtype):
            return super().linears(x, weights, biases)
        return _product(x, weights, biases, None, x.dtype)

    def normed_linears(
        self, x: Tensor, norm: Norm, weights: Sequence[Weight], biases: Sequence[Tensor | None]
    ) -> tuple[Tensor, ...]:
        """As Backend.normed_linears; a few tokens in one launch, in which x is not rounded."""
        fused = (
            norm.bias is None and runs(x, norm.weight) and _suits(x, weights, biases, None, x.dtype)
        )
        if not fused or len(weights) > _MOST_AT_ONCE or x.numel() // x.shape[-1] > _NORMED:
            return super().normed_linears(x, norm, weights, biases)
        return _product(x, weights, biases, None, x.dtype, norm)


def _suits(
    x: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    result: torch.dtype,
) -> bool:
    """Whether a kernel multiplies these, and sooner than the reference does."""
    if not x.numel() or not runs(x, *biases, residual) or result not in (x.dtype, torch.float32):
        return False
    if len({bias is None for bias in biases}) > 1:
        return False
    if all(isinstance(weight, Int8) for weight in weights):
        tensors = [tensor for w in weights if isinstance(w, Int8) for tensor in (w.codes, w.scales)]
        return all(tensor.device == x.device and tensor.is_contiguous() for tensor in tensors)
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    few = x.numel() // x.shape[-1] <= _FEW or result is not x.dtype
    return (
        few
        and len(dense) == len(weights)
        and runs(x, *dense)
        and all(w.dtype == x.dtype and w.numel() and w.is_contiguous() for w in dense)
    )


class _Tiles(NamedTuple):
    tokens: int
    rows: int
    cols: int
    warps: int
    stages: int


def _product(
    x: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    result: torch.dtype,
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    """norm: of x, for few tokens."""
    cols = x.shape[-1]
    tokens = x.numel() // cols
    rows = [weight.shape[0] for weight in weights]
    lead = x.shape[:-1]
    outs = [torch.empty((*lead, count), dtype=result, device=x.device) for count in rows]
    codes = [_codes(weight) for weight in weights]
    scales = [weight.scales for weight in weights if isinstance(weight, Int8)] or [outs[0]]
    int8 = isinstance(weights[0], Int8)
    few = tokens <= _VECTORS
    tiles = _vector_tiles(x, cols, int8) if few else _tiles(x, tokens, max(rows), int8)
    ends = _ends([ceil_div(count, tiles.rows) for count in rows])
    nothing = outs[0]  # a pointer that is not read
    first = biases[0]
    pointers = (
        x.contiguous(), codes[0], scales[0], nothing if first is None else first,
        nothing if residual is None else residual.contiguous(), outs[0],
    )  # fmt: skip
    sizes = (cols, ceil_div(cols, GROUP), ends[:2], rows[0], (*rows[1:], 0, 0)[:2])
    options: dict[str, Any] = {
        "ROWS": tiles.rows,
        "BIAS": first is not None,
        "RESIDUAL": residual is not None,
        "INT8": int8,
        "num_warps": tiles.warps,
    }
    apart = tuple(map(_distances, (codes, scales, biases, outs)))
    if few:
        even = cols % (tiles.cols * tiles.stages) == 0
        gain, eps = (nothing, 0.0) if norm is None else (norm.weight.contiguous(), norm.eps)
        launch(
            vectors, (ends[2],), *pointers, *sizes, *apart, gain, eps, TOKENS=tokens,
            CHUNK=tiles.cols, UNROLL=tiles.stages, EVEN=even, NORM=norm is not None, **options,
        )  # fmt: skip
    else:
        grid = (ceil_div(tokens, tiles.tokens), ends[2])
        launch(
            matrices, grid, *pointers, tokens, *sizes, *apart, TOKENS=tiles.tokens,
            COLS=tiles.cols, EVEN=cols % tiles.cols == 0, num_stages=tiles.stages,
            PRECISION="ieee" if x.dtype is torch.float32 else "tf32", **options,
        )  # fmt: skip
    return tuple(outs)


def _codes(weight: Weight) -> Tensor:
    if isinstance(weight, Int8):
        return weight.codes
    assert isinstance(weight, Tensor)
    return weight


def _vector_tiles(x: Tensor, cols: int, int8: bool) -> _Tiles:
    """A row for each warp; `stages` chunks are loaded at once."""
    chunk, most = (GROUP, 8) if int8 else (_CHUNK_BYTES // x.element_size(), 4)
    return _Tiles(1, _WARPS, chunk, _WARPS, min(most, ceil_div(cols, chunk)))


def _tiles(x: Tensor, tokens: int, rows: int, int8: bool) -> _Tiles:
    """Tiles that leave no multiprocessor without one, where there are few tokens."""
    wide = x.dtype is torch.float32
    if tokens <= _FEW:
        cols = GROUP if int8 or wide else 256
        if ceil_div(rows, 32) < 2 * card(x.device).processors:
            return _Tiles(16, 16, cols, 2, 4)
        return _Tiles(16, 32, cols, 4, 3 if wide else 4)
    cols = GROUP if int8 else 32 if wide else 64
    if wide or int8:
        return _Tiles(64, 64, cols, 4, 3)
    return _Tiles(64, 128, cols, 4, 3) if tokens <= 64 else _Tiles(128, 128, cols, 8, 3)


def _ends(blocks: Sequence[int]) -> tuple[int, int, int]:
    """Where the blocks of the first, the second and the third matrix end."""
    first, second, third = (*blocks, 0, 0)[:3]
    return first, first + second, first + second + third


def _distances(tensors: Sequence[Tensor | None]) -> tuple[int, int]:
    """How far the second and the third tensor lie from the first, in elements."""
    first = tensors[0]
    if first is None:
        return 0, 0
    size = first.element_size()
    found = [(t.data_ptr() - first.data_ptr()) // size for t in tensors[1:] if t is not None]
    second, third = (*found, 0, 0)[:2]
    return second, third
