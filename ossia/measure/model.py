"""One model measured from its files to its tokens: load time, prefill, decoding, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ossia import checkpoint, ops
from ossia.checkpoint.files import read_tensors
from ossia.config import ModelConfig
from ossia.engine import Engine
from ossia.errors import OssiaError
from ossia.insight.counts import bytes_per_token, count
from ossia.measure import memory
from ossia.measure.machine import BUFFER_BYTES, Bandwidth
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import (
    SHORT_PROMPT,
    UNTIMED,
    EngineModel,
    Model,
    Speed,
    Workload,
    measure,
)
from ossia.measure.stages import Pass, passes
from ossia.ops import int8
from ossia.options import EngineOptions, LoadOptions
from ossia.system.memory import available_memory


@dataclass(frozen=True)
class Run:
    """A program from its start to its last token.

    first_token_seconds: from the start of loading to the first token after a prompt of
        `SHORT_PROMPT`.
    anonymous_bytes: peak memory outside mapped files, that of Python and torch included.
    """

    load_seconds: float
    first_token_seconds: float
    anonymous_bytes: int
    speed: Speed


@dataclass(frozen=True)
class Report:
    """The result of `measure_model`. With random weights, loading is not that of a checkpoint, and
    memory includes what the files would hold. stages: where the time of a pass goes, if asked for.
    """

    dtype: str
    dense: str | None
    activations: str | None
    kv: str | None
    backend: str
    checkpoint_bytes: int
    bytes_per_token: int
    random_weights: bool
    run: Run
    stages: list[Pass] | None = None


def measure_run(
    load: Callable[[], Model],
    workload: Workload,
    bytes_per_token: float,
    progress: Callable[[], None] = lambda: None,
) -> Run:
    """Load a model and measure it as `speed.measure` does; `progress` is called once more, after
    the first token.
    """
    bandwidth = Bandwidth()
    with memory.PeakAnonymous() as peak:
        start = time.perf_counter()
        model = load()
        load_seconds = time.perf_counter() - start
        model.prefill([[0] * SHORT_PROMPT])
        first_token_seconds = time.perf_counter() - start
        progress()
        speed = measure(model, workload, bandwidth, bytes_per_token, progress)
    return Run(load_seconds, first_token_seconds, peak.bytes - BUFFER_BYTES, speed)


def measure_model(
    source: Path | ModelConfig,
    workload: Workload,
    options: LoadOptions = LoadOptions(),
    engine: EngineOptions = EngineOptions(),
    progress: Callable[[], None] = lambda: None,
    *,
    stages: bool = False,
) -> Report:
    """Measure our engine on the CPU: on a checkpoint folder, whose files are read into the page
    cache first, or on a config with random weights.

    Raises OssiaError for a model that cannot be loaded, for texts that do not fit its context, and
    for options that do not fit the measurement.
    """
    options, engine = _on_cpu(options), _for_batch(engine, max(workload.batches))
    config = source if isinstance(source, ModelConfig) else checkpoint.read_config(source)
    config = replace(config, dtype=options.dtype.value if options.dtype else config.dtype)
    _check_context(config, workload.longest)
    counts = count(config)
    if isinstance(source, ModelConfig):
        _check_memory(counts.checkpoint_bytes)
    else:
        memory.warm(weight_files(source))
    backend = ops.select(options.backend, "cpu", rounds=options.activations is not None)
    loaded: list[EngineModel] = []

    def load() -> EngineModel:
        if isinstance(source, ModelConfig):
            decoder = random_decoder(config, backend)
            if options.dense:
                decoder.to_int8()
            if options.activations:
                checkpoint.check_activations(decoder, "random weights")
        else:
            decoder = checkpoint.load(source, options)
        loaded.append(EngineModel(Engine(decoder, engine), workload.tokens + UNTIMED))
        return loaded[0]

    read = bytes_per_token(config, int8.ELEMENT_BYTES if options.dense else None)
    run = measure_run(load, workload, read, progress)
    return Report(
        dtype=config.dtype,
        dense=options.dense,
        activations=options.activations,
        kv=engine.kv,
        backend=backend.name,
        checkpoint_bytes=counts.checkpoint_bytes,
        bytes_per_token=read,
        random_weights=isinstance(source, ModelConfig),
        run=run,
        stages=passes(loaded[0], workload) if stages else None,
    )


def _on_cpu(options: LoadOptions) -> LoadOptions:
    if options.device not in ("auto", "cpu"):
        raise OssiaError(f"--device {options.device}: only the CPU is measured")
    return replace(options, device="cpu")


def _for_batch(engine: EngineOptions, batch: int) -> EngineOptions:
    if engine.max_batch is not None and engine.max_batch < batch:
        raise OssiaError(f"--max-batch {engine.max_batch}: {batch} sequences are to run together")
    if engine.speculate is not None:
        raise OssiaError(
            f"--speculate {engine.speculate}: each token is timed in a step of its own, and what "
            "speculation saves depends on the text"
        )
    return replace(engine, max_batch=engine.max_batch or batch)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors."""
    return sorted({tensor.file for tensor in read_tensors(folder).values()})


def _check_context(config: ModelConfig, needed: int) -> None:
    if needed > config.context_length:
        raise OssiaError(
            f"{needed:,} tokens do not fit the model's context of {config.context_length:,}: "
            "lower --prompt or --tokens"
        )


def _check_memory(size: int) -> None:
    free = available_memory()
    if free is not None and size > free:
        raise OssiaError(
            f"random weights of these shapes take {size / 1e9:.1f} GB, and only {free / 1e9:.1f} "
            "GB of memory are free"
        )
