"""Tokens per second of a checkpoint, as a share of what this machine's memory allows.

    python bench/decode.py FOLDER [--tokens N] [--prompt N] [--batch N] [--backend NAME]

Decoding a token reads every weight it uses once, so the limit is read bandwidth over those bytes.
Bandwidth and decoding are measured in turns in one run, because shared machines drift; figures are
medians. Prints one JSON line. Warm the page cache first (bench/load.py does).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from ossia import checkpoint
from ossia.compare.counts import count
from ossia.engine import Engine, Request, SamplingParams
from ossia.ops import cpu

TURNS = 5
BUFFER = 1 << 30  # bytes, far beyond any cache


def bandwidth(words: torch.Tensor) -> float:
    """Bytes per second of one pass over memory by all threads."""
    start = time.perf_counter()
    cpu.machine().sum(words.data_ptr(), words.numel())
    return words.nbytes / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in each of five turns")
    parser.add_argument("--prompt", type=int, default=32, help="tokens read before")
    parser.add_argument("--batch", type=int, default=1, help="sequences decoded together")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()

    decoder = checkpoint.load(options.folder, backend=options.backend)
    config = decoder.config
    engine = Engine(decoder, max_batch=options.batch)
    generator = torch.Generator().manual_seed(0)
    sampling = SamplingParams(temperature=0.0, max_tokens=TURNS * options.tokens + 8)
    prompts = torch.randint(config.vocab_size, (options.batch, options.prompt), generator=generator)
    start = time.perf_counter()
    for prompt in prompts.tolist():
        engine.add(Request(prompt, sampling))
    read = 0
    while read < options.batch:  # until each has its first token
        read += len(engine.step())
    prefill = time.perf_counter() - start

    words = torch.zeros(BUFFER // 8, dtype=torch.int64)
    rates, bandwidths = [], []
    for _ in range(TURNS):
        bandwidths.append(bandwidth(words))
        start = time.perf_counter()
        for _ in range(options.tokens):
            engine.step()
        rates.append(options.tokens / (time.perf_counter() - start))
    steps, memory = statistics.median(rates), statistics.median(bandwidths)
    needed = count(config).bytes_per_token
    print(
        json.dumps(
            {
                "folder": options.folder.name,
                "backend": decoder.ops.name,
                "isa": cpu.machine().isa,
                "threads": cpu.machine().threads,
                "batch": options.batch,
                "prefill_tokens_per_second": round(options.batch * options.prompt / prefill, 2),
                "decode_tokens_per_second": round(options.batch * steps, 2),
                "read_gb_per_second": round(memory / 1e9, 2),
                "gb_per_token": round(needed / 1e9, 3),
                # Of a batch the limit is higher: more experts are read, dense weights but once.
                "share_of_bandwidth": round(steps * needed / memory, 3)
                if options.batch == 1
                else None,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
