"""One model measured from its files to its tokens: loading, prompts, decoding, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ossia import checkpoint, ops
from ossia.checkpoint.files import read_tensors
from ossia.compare.counts import count
from ossia.config import ModelConfig
from ossia.engine import Engine
from ossia.errors import OssiaError
from ossia.measure import memory
from ossia.measure.machine import BUFFER_BYTES, Bandwidth
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import SHORT_PROMPT, EngineModel, Speed, measure
from ossia.model import Decoder


@dataclass(frozen=True)
class Report:
    """What `measure_model` found.

    load_seconds: from files in the page cache to a model; None for random weights.
    first_token_seconds: from the same start to the first token after a prompt of `SHORT_PROMPT`.
    anonymous_bytes: the most memory held beside mapped files, that of Python and torch included,
        and of random weights.
    """

    dtype: str
    backend: str
    checkpoint_bytes: int
    bytes_per_token: int
    load_seconds: float | None
    first_token_seconds: float | None
    speed: Speed
    anonymous_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors."""
    return sorted({tensor.file for tensor in read_tensors(folder).values()})


def measure_model(
    source: Path | ModelConfig,
    *,
    prompts: Sequence[int],
    tokens: int,
    batches: Sequence[int],
    turns: int = 5,
    dtype: str | None = None,
    backend: str = "auto",
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Measure a checkpoint's folder, or a config with random weights; as `speed.measure` does.

    `progress` is called once more, when the model is ready. Raises OssiaError for what cannot be
    loaded, and for prompts that do not fit the context.
    """
    config = source if isinstance(source, ModelConfig) else checkpoint.read_config(source)
    _check_context(config, max(*prompts, SHORT_PROMPT + tokens + 2))
    if isinstance(source, Path):
        memory.warm(weight_files(source))
    bandwidth = Bandwidth()
    with memory.PeakAnonymous() as peak:
        start = time.perf_counter()
        if isinstance(source, Path):
            decoder = checkpoint.load(source, dtype=dtype, backend=backend)
        else:
            decoder = _random(source, dtype, backend)
        load_seconds = time.perf_counter() - start
        model = EngineModel(Engine(decoder, max_batch=max(batches)))
        model.prefill([[0] * SHORT_PROMPT])
        first_token_seconds = time.perf_counter() - start
        progress()
        counts = count(decoder.config)
        speed = measure(
            model,
            bandwidth,
            counts.bytes_per_token,
            prompts=prompts,
            tokens=tokens,
            batches=batches,
            turns=turns,
            progress=progress,
        )
    loaded = isinstance(source, Path)
    return Report(
        decoder.config.dtype,
        decoder.ops.name,
        counts.checkpoint_bytes,
        counts.bytes_per_token,
        load_seconds if loaded else None,
        first_token_seconds if loaded else None,
        speed,
        peak.bytes - BUFFER_BYTES,
    )


def _check_context(config: ModelConfig, needed: int) -> None:
    if needed > config.context_length:
        raise OssiaError(
            f"{needed} tokens do not fit the model's context of {config.context_length}: "
            "lower --prompt or --tokens"
        )


def _random(config: ModelConfig, dtype: str | None, backend: str) -> Decoder:
    config = replace(config, dtype=dtype or config.dtype)
    size, room = count(config).checkpoint_bytes, memory.available()
    if size > room:
        raise OssiaError(
            f"random weights of these shapes take {size / 1e9:.1f} GB, and {room / 1e9:.1f} GB of "
            "memory are free"
        )
    return random_decoder(config, ops.select(backend, torch.device("cpu")))
