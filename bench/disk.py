"""Decoding and prompts with experts on disk, and the disk's own bandwidth.

    python bench/disk.py FOLDER [--expert-memory SIZE] [--tokens N] [--prompt N] [--skew S]

Random weights route nearly uniformly over the experts; `--skew` adds -S ln(rank) to the router's
biases, in a random order per layer, to imitate a trained model. Run it under a memory limit (a
control group, systemd-run -p MemoryMax=); otherwise the page cache holds the whole file, whatever
--expert-memory is. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import time
from pathlib import Path

import torch
from torch import nn

from ossia import checkpoint
from ossia.engine import Engine, Request, SamplingParams
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.offload import store_of
from ossia.offload.reader import Job, Reader, Span
from ossia.ops import cpu
from ossia.options import EngineOptions, LoadOptions

EXPERT = 13 << 20  # bytes, about those of gpt-oss


def disk_bandwidth(folder: Path, threads: int, jobs: int = 24) -> float:
    """Bytes per second of random reads of an expert's size, without the page cache."""
    files = [path for path in folder.glob("*.safetensors") if path.stat().st_size > 4 * EXPERT]
    if not files:
        raise OssiaError(
            f"{folder} holds no .safetensors file of {4 * EXPERT >> 20} MiB to read from"
        )
    draw = random.Random(threads)
    reader = Reader(threads)
    reader.open(files)
    target = torch.empty(EXPERT, dtype=torch.uint8)
    start = time.perf_counter()
    for number in range(jobs):
        file = draw.choice(files)
        offset = draw.randrange(file.stat().st_size - EXPERT)
        job = Job(f"read {number}", [(Span(file, offset, EXPERT), target.data_ptr())])
        reader.submit(job, urgent=True)
        reader.wait(lambda job=job: job.settled)
    seconds = time.perf_counter() - start
    reader.close()
    return jobs * EXPERT / seconds


def skew(decoder: Decoder, strength: float) -> None:
    """Zipf's law in the router's biases."""
    generator = torch.Generator().manual_seed(0)
    for layer in decoder.layers:
        assert isinstance(layer, nn.Module)
        bias = layer.get_parameter("feedforward.router.bias")
        ranks = torch.randperm(bias.numel(), generator=generator) + 1
        bias -= (strength * ranks.log()).to(bias.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expert-memory", help="as for `ossia generate`")
    parser.add_argument("--tokens", type=int, default=32, help="decoded")
    parser.add_argument("--prompt", type=int, default=32, help="tokens read before")
    parser.add_argument("--skew", type=float, default=0.0)
    options = parser.parse_args()
    if options.tokens < 4:
        parser.error("--tokens must be at least 4")
    if options.prompt < 1:
        parser.error("--prompt must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(json.dumps(measured(options)))
    except OssiaError as error:
        parser.error(str(error))


def measured(options: argparse.Namespace) -> dict[str, object]:
    disk = {threads: disk_bandwidth(options.folder, threads) for threads in (1, 2, 4, 8)}
    start = time.perf_counter()
    decoder = checkpoint.load(options.folder, LoadOptions(expert_memory=options.expert_memory))
    load_seconds = time.perf_counter() - start
    if options.skew:
        skew(decoder, options.skew)
    store = store_of(decoder)
    engine = Engine(decoder, EngineOptions(max_batch=1))
    prompt = torch.randint(
        decoder.config.vocab_size, (options.prompt,), generator=torch.Generator().manual_seed(0)
    )
    engine.add(
        Request(prompt.tolist(), SamplingParams(temperature=1.0, seed=0, max_tokens=options.tokens))
    )
    result = {
        "folder": options.folder.name,
        "expert_memory": options.expert_memory,
        "slots": store and store.slots,
        "skew": options.skew,
        "threads": cpu.machine().threads,
        "disk_gb_per_second": {threads: round(rate / 1e9, 2) for threads, rate in disk.items()},
        "load_seconds": round(load_seconds, 2),
    }
    start = time.perf_counter()
    while not engine.step():  # until the first token
        pass
    result["prefill_seconds"] = round(time.perf_counter() - start, 2)
    result["prefill_gb_read"] = store and round(store.reads.bytes_read / 1e9, 2)
    rates, before = [], store and store.reads
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(options.tokens // 2 - 1):
            engine.step()
        rates.append((options.tokens // 2 - 1) / (time.perf_counter() - start))
    result["decode_tokens_per_second"] = [round(rate, 3) for rate in rates]
    result["major_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    if store is not None and before is not None:
        reads = store.reads - before
        tokens = 2 * (options.tokens // 2 - 1)
        result |= {
            "hit_rate": round(reads.hit_rate, 3),
            "gb_per_token": round(reads.bytes_read / tokens / 1e9, 3),
            "prefetches_hit": round(reads.prefetch_hits / max(reads.prefetched, 1), 3),
            "prefetched_per_token": round(reads.prefetched / tokens, 2),
            "seconds_waited_per_token": round(reads.seconds_waited / tokens, 4),
        }
    return result


if __name__ == "__main__":
    main()
