"""Measures one program once, in a separate process: `python -m bench.peers_cpu.turn JSON`.

The argument is a `Job`. Prints one line of JSON: {"run": ...} as `ossia.measure.model.Run`, or
{"reason": ...} where the program cannot run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.peers_cpu.peers import LlamaCpp, Transformers
from ossia import checkpoint
from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.engine import Engine
from ossia.insight.counts import bytes_per_token, count
from ossia.measure import memory
from ossia.measure.model import measure_run, weight_files
from ossia.measure.speed import SHORT_PROMPT, UNTIMED, EngineModel, Model, Workload
from ossia.ops.int8 import ELEMENT_BYTES as INT8_ELEMENT_BYTES
from ossia.options import Dtype, EngineOptions, Int8, LoadOptions


@dataclass(frozen=True)
class Job:
    """The measurement: a program on a file in one precision."""

    program: str  # ossia, llama.cpp or transformers
    folder: str  # of the checkpoint
    file: str | None  # the file for llama.cpp
    precision: str  # of dense weights: float32, bfloat16, int8, Q8_0
    prompts: Sequence[int]
    tokens: int
    batches: Sequence[int]
    threads: int


# Bytes that an element of a dense matrix takes.
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": INT8_ELEMENT_BYTES, "Q8_0": 34 / 32}


def main() -> None:
    print(json.dumps(measured(Job(**json.loads(sys.argv[1])))))


def measured(job: Job) -> dict[str, object]:
    torch.set_num_threads(job.threads)
    folder = Path(job.folder)
    config = checkpoint.read_config(folder)
    try:
        load = _loader(job, folder, config)
        memory.warm([Path(job.file)] if job.file else weight_files(folder))
        run = measure_run(
            load,
            Workload(job.prompts, job.tokens, job.batches, turns=1),
            bytes_per_token(config, ELEMENT_BYTES[job.precision]),
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return {"reason": " ".join(f"{type(error).__name__}: {error}".split())}
    return {"run": asdict(run)}


def _loader(job: Job, folder: Path, config: ModelConfig) -> Callable[[], Model]:
    """The function that loads the program. Raises ValueError for a model that does not fit."""
    if job.program == "llama.cpp":
        assert job.file is not None
        file, context = Path(job.file), max([*job.prompts, SHORT_PROMPT + job.tokens]) + 8
        return lambda: LlamaCpp(file, job.threads, context)
    if job.program == "transformers":
        size = count(with_expert_format(config, ExpertFormat.DENSE)).checkpoint_bytes
        if size > memory.total():
            raise ValueError(f"it unpacks to {size / 1e9:.0f} GB, more than the machine has")
        return lambda: Transformers(folder, job.precision)
    batch = max(job.batches)
    int8 = job.precision == "int8"
    options = LoadOptions(dense=Int8.int8) if int8 else LoadOptions(dtype=Dtype(job.precision))
    return lambda: EngineModel(
        Engine(checkpoint.load(folder, options), EngineOptions(max_batch=batch)),
        job.tokens + UNTIMED,
    )


if __name__ == "__main__":
    main()
