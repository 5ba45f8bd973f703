"""One model measured from its files to its tokens: loading, prompts, decoding, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from ossia.measure.speed import SHORT_PROMPT, UNTIMED, EngineModel, Model, Speed, measure
from ossia.ops import int8
from ossia.options import EngineOptions
from ossia.system.memory import available_memory


@dataclass(frozen=True)
class Run:
    """A program's way from its start to its last token.

    first_token_seconds: from the start of loading to the first token of a prompt of
        `SHORT_PROMPT`. anonymous_bytes: the most memory held beside mapped files, that of Python
        and torch included.
    """

    load_seconds: float
    first_token_seconds: float
    anonymous_bytes: int
    speed: Speed


@dataclass(frozen=True)
class Report:
    """What `measure_model` found. Loading says nothing, and memory much, of random weights."""

    dtype: str
    dense: str | None
    kv: str | None
    backend: str
    checkpoint_bytes: int
    bytes_per_token: int
    random_weights: bool
    run: Run


def measure_run(
    load: Callable[[], Model],
    bytes_per_token: float,
    *,
    prompts: Sequence[int],
    tokens: int,
    batches: Sequence[int] = (1,),
    turns: int = 5,
    progress: Callable[[], None] = lambda: None,
) -> Run:
    """Load a model and measure it, as `speed.measure` does; `progress` is called once more, when it
    has made its first token.
    """
    bandwidth = Bandwidth()
    with memory.PeakAnonymous() as peak:
        start = time.perf_counter()
        model = load()
        load_seconds = time.perf_counter() - start
        model.prefill([[0] * SHORT_PROMPT])
        first_token_seconds = time.perf_counter() - start
        progress()
        speed = measure(
            model,
            bandwidth,
            bytes_per_token,
            prompts=prompts,
            tokens=tokens,
            batches=batches,
            turns=turns,
            progress=progress,
        )
    return Run(load_seconds, first_token_seconds, peak.bytes - BUFFER_BYTES, speed)


def measure_model(
    source: Path | ModelConfig,
    *,
    prompts: Sequence[int],
    tokens: int,
    batches: Sequence[int] = (1,),
    turns: int = 5,
    dtype: str | None = None,
    dense: str | None = None,
    kv: str | None = None,
    backend: str = "auto",
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Measure our engine on a checkpoint's folder, its files in the page cache, or on a config with
    random weights.

    dense, kv: "int8" quantizes the dense matrices as they are loaded, or keys and values.
    Raises OssiaError for what cannot be loaded, and for prompts that do not fit the context.
    """
    config = source if isinstance(source, ModelConfig) else checkpoint.read_config(source)
    config = replace(config, dtype=dtype or config.dtype)
    _check_context(config, max(*prompts, SHORT_PROMPT + tokens + UNTIMED))
    counts = count(config)
    if isinstance(source, ModelConfig):
        _check_memory(counts.checkpoint_bytes)
    else:
        memory.warm(weight_files(source))
    chosen = ops.select(backend, "cpu")

    def load() -> EngineModel:
        if isinstance(source, ModelConfig):
            decoder = random_decoder(config, chosen)
            if dense == "int8":
                decoder.to_int8()
        else:
            decoder = checkpoint.load(source, dtype=dtype, dense=dense, backend=chosen.name)
        options = EngineOptions(max_batch=max(batches), kv=kv)  # type: ignore[arg-type]
        return EngineModel(Engine(decoder, options), tokens + UNTIMED)

    read = bytes_per_token(config, int8.ELEMENT_BYTES if dense == "int8" else None)

    run = measure_run(
        load,
        read,
        prompts=prompts,
        tokens=tokens,
        batches=batches,
        turns=turns,
        progress=progress,
    )
    return Report(
        config.dtype,
        dense,
        kv,
        chosen.name,
        counts.checkpoint_bytes,
        read,
        isinstance(source, ModelConfig),
        run,
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors."""
    return sorted({tensor.file for tensor in read_tensors(folder).values()})


def _check_context(config: ModelConfig, needed: int) -> None:
    if needed > config.context_length:
        raise OssiaError(
            f"{needed} tokens do not fit the model's context of {config.context_length}: "
            "lower --prompt or --tokens"
        )


def _check_memory(size: int) -> None:
    free = available_memory()
    if free is not None and size > free:
        raise OssiaError(
            f"random weights of these shapes take {size / 1e9:.1f} GB, and only {free / 1e9:.1f} "
            "GB of memory are free"
        )
