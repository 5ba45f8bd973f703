"""Attention over pages beside the matrix products of the same layer, and torch's own attention.

    python bench/attention.py [--shape gpt-oss-20b] [--lengths 512 4096 32768] [--queries 512 8 1]
                              [--dtype float32] [--kv int8] [--torch]

The last queries of a prompt attend to all of it: billions of multiplications a second, counting
visible keys only, and milliseconds. A sliding window is measured beside full attention where the
shape has one. The products of 512 tokens with the layer's matrix of queries alternate with them.
--torch adds torch's scaled_dot_product_attention over the whole length, without pages, sinks and
rotation. Figures are medians of three. Prints a JSON line per length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ossia.ops import AttentionSpec, RopeTable, cpu
from ossia.ops.paged import LayerKind, LayerKV, PagedKV, PagePool

PAGE, TURNS, TOKENS = 16, 3, 512


class Shape(NamedTuple):
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    sinks: bool


SHAPES = {
    "qwen3-0.6b": Shape(1024, 16, 8, 128, (None,), False),
    "gpt-oss-20b": Shape(2880, 64, 8, 64, (None, 128), True),
}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def attention(
    shape: Shape, length: int, queries: int, window: int | None, dtype: torch.dtype, kv: torch.dtype
) -> Callable[[], object]:
    """A call of the last `queries` of a prompt of `length`."""
    kind = LayerKind(window, shape.kv_heads, shape.head_dim)
    pages = -(-length // PAGE)
    pool = PagePool([kind], {kind: pages}, page_size=PAGE, dtype=kv)
    for stored in (pool.keys, pool.values):
        stored[kind].copy_(torch.randn(stored[kind].shape) * (30 if kv is torch.int8 else 1))
    for scales in (pool.key_scales, pool.value_scales):
        if scales:
            scales[kind].fill_(1 / 30)
    table = torch.arange(pages, dtype=torch.int32)[None]
    where: LayerKV = PagedKV(
        pool, {kind: table}, torch.tensor([length]), torch.tensor([queries])
    ).layer(0)
    q = torch.randn(queries, shape.heads, shape.head_dim, dtype=dtype)
    k, v = (torch.randn(queries, shape.kv_heads, shape.head_dim, dtype=dtype) for _ in range(2))
    angles = torch.randn(queries, shape.head_dim // 2)
    rope = RopeTable(angles.cos(), angles.sin())
    spec = AttentionSpec(window, torch.randn(shape.heads) if shape.sinks else None)
    return lambda: cpu.CPU.attention(q, k, v, spec, where, rope)


def torchs(shape: Shape, length: int, dtype: torch.dtype) -> Callable[[], object]:
    q = torch.randn(1, shape.heads, length, shape.head_dim, dtype=dtype)
    k, v = (torch.randn(1, shape.kv_heads, length, shape.head_dim, dtype=dtype) for _ in range(2))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def multiplications(shape: Shape, length: int, queries: int, window: int | None) -> int:
    seen = sum(min(window or length, position + 1) for position in range(length - queries, length))
    return 2 * shape.heads * shape.head_dim * seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 8192, 32768])
    parser.add_argument("--queries", type=int, nargs="+", default=[512, 8, 1])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--kv", choices=["int8"], help="how keys and values are stored")
    parser.add_argument("--torch", action="store_true", help="also torch's, over the whole length")
    options = parser.parse_args()
    if min(*options.lengths, *options.queries) < 1:
        parser.error("--lengths and --queries must be at least 1")
    shape, dtype = SHAPES[options.shape], getattr(torch, options.dtype)
    machine = cpu.machine()
    machine.pin()  # two threads on one processor would measure the scheduler
    x = torch.randn(TOKENS, shape.hidden, dtype=dtype)
    weight = torch.randn(shape.heads * shape.head_dim, shape.hidden, dtype=dtype)
    for length in options.lengths:
        runs: dict[str, tuple[Callable[[], object], int]] = {
            "matrix": (lambda: cpu.CPU.linear(x, weight), TOKENS * weight.numel())
        }
        for window in shape.windows:
            for queries in sorted({min(count, length) for count in options.queries}):
                name = f"{queries} queries" + (f", window {window}" if window else "")
                call = attention(
                    shape, length, queries, window, dtype, torch.int8 if options.kv else dtype
                )
                runs[name] = call, multiplications(shape, length, queries, window)
        if options.torch:
            runs["torch"] = (
                torchs(shape, length, dtype),
                multiplications(shape, length, length, None),
            )
        times = {name: [] for name in runs}
        for turn in range(TURNS + 1):
            for name, (function, _) in runs.items():
                taken = seconds(function)
                if turn:  # the first warms caches and pages
                    times[name].append(taken)
        result: dict[str, object] = {
            "shape": options.shape,
            "length": length,
            "dtype": options.dtype,
            "kv": options.kv or options.dtype,
            "isa": machine.isa,
            "threads": machine.threads,
        }
        for name, (_, count) in runs.items():
            median = statistics.median(times[name])
            result[name] = {
                "gmac_per_second": round(count / median / 1e9, 1),
                "milliseconds": round(1e3 * median, 3),
            }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
