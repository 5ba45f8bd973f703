"""Attention over whole rows with a gradient, as an operation that torch.compile and fake tensors
take as one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.ops.triton import training_attention_kernels as kernels
from ossia.ops.triton.launch import DTYPES, ceil_div, for_card, launch, power_of_2
from ossia.ops.values import AttentionSpec, Documents


class _Blocks(NamedTuple):
    """Rows and columns of a tile of scores, and how a kernel is launched."""

    rows: int
    cols: int
    num_warps: int
    num_stages: int


class _Shapes(NamedTuple):
    forward: _Blocks
    keys: _Blocks
    queries: _Blocks


# By architecture, then by the widest head.
_BLOCKS = {
    80: {
        64: _Shapes(_Blocks(128, 64, 8, 3), _Blocks(32, 128, 8, 2), _Blocks(128, 32, 8, 3)),
        128: _Shapes(_Blocks(64, 64, 4, 2), _Blocks(32, 64, 8, 2), _Blocks(64, 32, 8, 2)),
        256: _Shapes(_Blocks(64, 32, 8, 2), _Blocks(32, 32, 8, 1), _Blocks(32, 32, 8, 1)),
    },
    90: {
        64: _Shapes(_Blocks(128, 64, 8, 3), _Blocks(64, 128, 8, 2), _Blocks(128, 64, 8, 3)),
        128: _Shapes(_Blocks(128, 64, 8, 3), _Blocks(64, 64, 8, 2), _Blocks(64, 64, 4, 2)),
        256: _Shapes(_Blocks(64, 32, 8, 2), _Blocks(32, 32, 8, 1), _Blocks(32, 32, 8, 1)),
    },
}
_FLOAT32 = {  # products on the cores, without tensor cores
    64: _Shapes(_Blocks(32, 32, 4, 2), _Blocks(16, 16, 4, 1), _Blocks(16, 16, 4, 1)),
}


_PREPARED = 64  # rows of a block


def supports(size: int, dtype: torch.dtype) -> bool:
    """Whether the kernels take heads of a size."""
    return dtype in DTYPES and size <= max(_FLOAT32 if dtype is torch.float32 else _BLOCKS[80])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    documents: Documents | None,
) -> Tensor:
    """Causal attention of q (batch, length, heads, head_dim) over k and v (batch, length, kv_heads,
    head_dim) of one dtype, rotated already; as `causal_attention`.
    """
    firsts = ends = seed = None
    if documents is not None:
        bounds = documents.bounds or documents.bounded().bounds
        assert bounds is not None
        firsts, ends = bounds
    if spec.dropout:
        seed = torch.randint(1 << 30, (1,), dtype=torch.int32, device=q.device)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    options = (spec.sinks, firsts, ends, seed, spec.window or 0, spec.dropout)
    return _attention(q, k, v, *options)[0]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    firsts: Tensor | None,
    ends: Tensor | None,  # noqa: ARG001 (for the gradient)
    seed: Tensor | None,
    window: int,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The output and, in log2, each row's log-sum-exp (batch, heads, length)."""
    batch, length, heads, _ = q.shape
    out, lse = _outputs(q)
    blocks = _blocks(q).forward
    grid = (ceil_div(length, blocks.rows), heads, batch)
    launch(
        kernels.forward, grid, q, k, v, sinks, firsts, seed, out, lse, length,
        **_options(q, k, blocks, window, dropout, firsts), SINKS=sinks is not None,
    )  # fmt: skip
    return out, lse


_attention = torch.library.custom_op("ossia::attention", forward, mutates_args=())


@_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _outputs(q)


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q.shape
    return torch.empty_like(q), q.new_empty(batch, heads, length, dtype=torch.float32)


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    firsts: Tensor | None,
    ends: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and, float32 (heads,), the sinks; nothing of those if none."""
    batch, length, heads, size = q.shape
    shapes, width = _blocks(q), _width(size)
    count = ceil_div(length, _PREPARED)
    taken = torch.empty_like(lse)
    parts = lse.new_empty(batch, heads, count if sinks is not None else 0)
    launch(
        kernels.prepare, (count, heads, batch), gradient, out, sinks, lse, taken, parts, length,
        HEADS=heads, SIZE=size, WIDTH=width, ROWS=_PREPARED, SINKS=sinks is not None, num_warps=4,
    )  # fmt: skip
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    options = _options(q, k, shapes.keys, window, dropout, firsts)
    grid = (ceil_div(length, shapes.keys.cols), k.shape[2], batch)
    launch(
        kernels.keys_backward, grid,
        gradient, q, k, v, lse, taken, ends, seed, d_k, d_v, length, **options,
    )  # fmt: skip
    options = _options(q, k, shapes.queries, window, dropout, firsts)
    grid = (ceil_div(length, shapes.queries.rows), heads, batch)
    launch(
        kernels.queries_backward, grid,
        gradient, q, k, v, lse, taken, firsts, seed, d_q, length, **options,
    )  # fmt: skip
    return d_q, d_k, d_v, parts.sum((0, 2)) if sinks is not None else lse.new_empty(0)


_attention_backward = torch.library.custom_op(
    "ossia::attention_backward", backward, mutates_args=()
)


@_attention_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    d_sinks = q.new_empty(0 if sinks is None else q.shape[2], dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_sinks


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window, ctx.dropout = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    *found, d_sinks = _attention_backward(gradient.contiguous(), *tensors, ctx.window, ctx.dropout)
    sinks = tensors[3]
    d_sinks = None if sinks is None else d_sinks.to(sinks.dtype)
    return *found, d_sinks, None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_keep)


def _blocks(q: Tensor) -> _Shapes:
    table = _FLOAT32 if q.dtype is torch.float32 else for_card(_BLOCKS, q.device)
    return next(shapes for widest, shapes in table.items() if q.shape[-1] <= widest)


def _width(size: int) -> int:
    return max(16, power_of_2(size))


def _options(
    q: Tensor,
    k: Tensor,
    blocks: _Blocks,
    window: int,
    dropout: float,
    firsts: Tensor | None,
) -> dict[str, Any]:
    size = q.shape[-1]
    return {
        "HEADS": q.shape[2],
        "KV_HEADS": k.shape[2],
        "SIZE": size,
        "WIDTH": _width(size),
        "ROWS": blocks.rows,
        "COLS": blocks.cols,
        "WINDOW": window,
        "DOCUMENTS": firsts is not None,
        "DROPOUT": dropout,
        "PRECISION": "ieee" if q.dtype is torch.float32 else "tf32",
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }
