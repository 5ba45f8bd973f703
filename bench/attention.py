"""Attention over pages in the shapes of gpt-oss-20b, beside torch's own.

    python bench/attention.py [--lengths 512 2048 8192] [--dtype bfloat16] [--kv int8]

Prompts: one layer with and one without its window of 128, with sinks and rotation, in GFLOP/s of
visible keys. For comparison: torch's scaled_dot_product_attention without pages, sinks and
rotation, in float32 and in --dtype, and a float32 matrix product by torch, which approximates the
processor's peak. Decoding: microseconds of one token after this length, and the GB/s of keys and
values that it reads. Cases alternate; figures are medians of three. Prints a JSON line per length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ossia.ops import AttentionSpec, RopeTable, cpu
from ossia.ops.paged import LayerKind, LayerKV, PagedKV, PagePool

HEADS, KV_HEADS, HEAD_DIM, WINDOW = 64, 8, 64, 128
PAGE = 16
TURNS = 3


def seconds(function: Callable[[], object], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - start) / times


def layer(length: int, tokens: int, window: int | None, dtype: torch.dtype) -> LayerKV:
    kind = LayerKind(window, KV_HEADS, HEAD_DIM)
    pages = -(-length // PAGE)
    pool = PagePool([kind], {kind: pages}, page_size=PAGE, dtype=dtype)
    for stored in (pool.keys, pool.values, pool.key_scales, pool.value_scales):
        if stored:
            stored[kind].fill_(1)
    table = torch.arange(pages, dtype=torch.int32)[None]
    return PagedKV(pool, {kind: table}, torch.tensor([length]), torch.tensor([tokens])).layer(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--kv", choices=["int8"], help="how keys and values are stored")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    stored = torch.int8 if options.kv else dtype
    matrix = torch.randn(1024, 1024)
    sinks = torch.randn(HEADS)
    for length in options.lengths:
        q = torch.randn(length, HEADS, HEAD_DIM, dtype=dtype)
        k, v = (torch.randn(length, KV_HEADS, HEAD_DIM, dtype=dtype) for _ in range(2))
        angles = torch.randn(length, HEAD_DIM // 2)
        rotation = (angles.cos(), angles.sin())
        full, sliding = (layer(length, length, w, stored) for w in (None, WINDOW))
        decoding = layer(length, 1, None, stored)
        last = [x[-1:] for x in (q, k, v)]
        last_rotation = (rotation[0][-1:], rotation[1][-1:])
        peers = {
            name: [x.to(kind).transpose(0, 1)[None] for x in (q, k, v)]
            for name, kind in {"float32": torch.float32, options.dtype: dtype}.items()
        }

        def torchs(name: str, peers=peers) -> Callable[[], object]:
            return lambda: F.scaled_dot_product_attention(
                *peers[name], is_causal=True, enable_gqa=True
            )

        def ours(kv: LayerKV, x=(q, k, v), rotation=rotation) -> Callable[[], object]:
            spec = AttentionSpec(kv.tables.window, sinks)
            queries, keys, values = x
            return lambda: cpu.CPU.attention(queries, keys, values, spec, kv, RopeTable(*rotation))

        runs: dict[str, tuple[Callable[[], object], int]] = {
            "full": (ours(full), 1),
            "window": (ours(sliding), 1),
            "decode": (ours(decoding, tuple(last), last_rotation), 50),
            "matrix": (lambda: matrix @ matrix, 5),
        }
        runs |= {f"torch {name}": (torchs(name), 1) for name in peers}
        times = {name: [] for name in runs}
        for turn in range(TURNS + 1):
            for name, (function, count) in runs.items():
                taken = seconds(function, count)
                if turn:  # the first warms caches and pages
                    times[name].append(taken)
        median = {name: statistics.median(taken) for name, taken in times.items()}
        seen = {
            "full": length * (length + 1) // 2,
            "window": sum(min(i + 1, WINDOW) for i in range(length)),
        }
        flops = {name: 4 * HEADS * HEAD_DIM * keys for name, keys in seen.items()}
        size = 2 * KV_HEADS * (HEAD_DIM + 4 if options.kv else HEAD_DIM * dtype.itemsize)
        result = {
            "length": length,
            "dtype": options.dtype,
            "kv": options.kv or options.dtype,
            "isa": cpu.machine().isa,
            "threads": cpu.machine().threads,
            "full_gflops": round(flops["full"] / median["full"] / 1e9, 1),
            "window_gflops": round(flops["window"] / median["window"] / 1e9, 1),
            "matrix_product_gflops": round(2 * 1024**3 / median["matrix"] / 1e9, 1),
            "full_milliseconds": round(1e3 * median["full"], 2),
            "window_milliseconds": round(1e3 * median["window"], 2),
            "decode_microseconds": round(1e6 * median["decode"], 1),
            "decode_gb_per_second": round(length * size / median["decode"] / 1e9, 2),
        }
        for name in peers:
            result[f"times_torch_{name}"] = round(median[f"torch {name}"] / median["full"], 2)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
