"""Sampling a token for each row of a batch, by parameters.

    python bench/sampling.py [--rows 16] [--vocab 201088] [--backend reference] [--threads N]

Two kinds of logits: "flat" are normal numbers with a standard deviation of 2, whose nucleus is most
of the vocabulary; "steep" fall with the logarithm of an id's rank, as a language model's do, and
the nucleus is a few hundred ids. With penalties, every row has an output of 1,000 tokens. The time
covers the engine's whole step from logits to tokens. Cases alternate; prints medians in
milliseconds as a JSON line for each kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor

from ossia import ops
from ossia.engine import SamplingParams
from ossia.engine.sampler import Sampler
from ossia.engine.sampler_state import SamplerState
from ossia.errors import OssiaError
from ossia.measure.machine import describe

TOP_P = 0.95
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.2, "repetition_penalty": 1.1}
HISTORY = 1000  # tokens of output in rows with penalties

# Parameters of all rows, and of the first alone.
CASES: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "greedy": ({"temperature": 0.0}, {}),
    "temperature 1": ({}, {}),
    "top-p": ({"top_p": TOP_P}, {}),
    "top-k": ({"top_k": 50}, {}),
    "min-p": ({"min_p": 0.05}, {}),
    "top-p and penalties": ({"top_p": TOP_P, **PENALTIES}, {}),
    "top-p, penalties in one row": ({"top_p": TOP_P}, PENALTIES),
}


def logits_of(kind: str, rows: int, vocab: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "flat":
        return torch.randn(rows, vocab, generator=generator) * 2
    ranks = torch.stack([torch.randperm(vocab, generator=generator) + 1 for _ in range(rows)])
    return -2.0 * ranks.float().log()


def states_of(case: str, rows: int, vocab: int) -> list[SamplerState]:
    every, first = CASES[case]
    generator = torch.Generator().manual_seed(1)
    states = []
    for row in range(rows):
        params = SamplingParams(seed=row, **every, **({} if row else first))  # type: ignore[arg-type]
        states.append(SamplerState(row, params, [row]))
        for token in torch.randint(vocab, (HISTORY,), generator=generator).tolist():
            states[-1].record(token)
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=201_088)
    parser.add_argument("--backend", default="auto", help="auto, cpu or reference")
    parser.add_argument("--threads", type=int, help="default: one per processor")
    parser.add_argument("--turns", type=int, default=25)
    options = parser.parse_args()
    for name in ("rows", "vocab", "turns"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        backend = ops.select(options.backend, "cpu")
    except OssiaError as error:
        parser.error(str(error))
    machine = describe()
    for kind in ("flat", "steep"):
        logits = logits_of(kind, options.rows, options.vocab)
        steps = {
            case: (Sampler(backend), states_of(case, options.rows, options.vocab)) for case in CASES
        }
        times: dict[str, list[float]] = {case: [] for case in CASES}
        for turn in range(options.turns + 1):
            for case, (sampler, states) in steps.items():
                start = time.perf_counter()
                sampler.sample(logits, states)
                if turn:  # the first builds the table
                    times[case].append(1e3 * (time.perf_counter() - start))
        print(
            json.dumps(
                {
                    "logits": kind,
                    "rows": options.rows,
                    "vocab": options.vocab,
                    "processor": machine.processor,
                    "kernels": machine.kernels if backend.name == "cpu" else backend.name,
                    "threads": machine.threads,
                    "milliseconds": {c: round(statistics.median(t), 2) for c, t in times.items()},
                }
            )
        )


if __name__ == "__main__":
    main()
