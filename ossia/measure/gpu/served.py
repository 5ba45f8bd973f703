"""Our engine on a card: loading, prompts, and decoding after contexts of any length."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import torch

from ossia import checkpoint, ops
from ossia.config import ModelConfig
from ossia.engine import Engine, Failure, Request, SamplingParams
from ossia.errors import OssiaError
from ossia.insight.counts import count, kv_bytes
from ossia.measure import memory
from ossia.measure.gpu.cases import Case, Measure, Served
from ossia.measure.gpu.limits import allocated
from ossia.measure.gpu.parts import Teller, seconds
from ossia.measure.model import weight_files
from ossia.measure.random_weights import random_decoder
from ossia.measure.speed import EngineModel
from ossia.model import Decoder
from ossia.options import EngineOptions, LoadOptions
from ossia.system.memory import format_size, free_memory

_UNTIMED = 3  # steps, in which kernels are compiled and the graph is captured
_WORKSPACE = 3 << 30  # left free on a card beside weights, keys and values
_LEAST_KV = 256 << 20


def write(model: Served, folder: Path) -> None:
    """A checkpoint with random weights, whose folder appears once it is whole."""
    checkpoint.save(random_decoder(model.config, copy=False), folder)


def measure(model: Served, teller: Teller) -> None:
    """All cases of a model."""
    device = teller.device
    before = allocated(device)
    decoder = _loaded(model, teller)
    teller.measure(
        Case(model.name, Measure.WEIGHTS), lambda: (allocated(device) - before) / 1e9, needs=0
    )
    engine = _engine(decoder, model, teller)
    reader = EngineModel(engine, 1)
    draw = random.Random(0)
    for length in model.prompts:
        prompt = [draw.randrange(model.config.vocab_size) for _ in range(length)]

        def read(prompt: list[int] = prompt) -> float:
            reader.prefill([prompt])  # compiles kernels
            return len(prompt) / statistics.median(
                seconds(device, lambda: reader.prefill([prompt])) for _ in range(teller.suite.turns)
            )

        teller.measure(Case(model.name, Measure.PREFILL, 1, length), read, needs=3)
    reader.prefill([])
    for batch, context in model.decodes:

        def decode(batch: int = batch, context: int = context) -> float:
            return _decoding_rate(engine, teller, batch, context)

        teller.measure(Case(model.name, Measure.DECODE, batch, context), decode, needs=3)
    peak = Case(model.name, Measure.PEAK)
    teller.measure(
        peak, lambda: (allocated(device, most=True) - before - engine.kv_bytes) / 1e9, needs=0
    )


def _loaded(model: Served, teller: Teller) -> Decoder:
    """From the files that another part wrote, or with weights made on the spot."""
    device, found = teller.device, []
    if model.stored:

        def load() -> float:
            folder = teller.folder
            if folder is None or not folder.is_dir():
                raise OssiaError("the checkpoint was not written in time, or there was no room")
            memory.warm(weight_files(folder))
            options = LoadOptions(device=str(device))
            return seconds(device, lambda: found.append(checkpoint.load(folder, options)))

        teller.measure(Case(model.name, Measure.LOAD), load, needs=10)
    return found[0] if found else _random(model.config, device)


def _random(config: ModelConfig, device: torch.device) -> Decoder:
    size, free = count(config).checkpoint_bytes, free_memory(device)
    if size > free:
        raise OssiaError(f"its weights take {format_size(size)}, and {format_size(free)} are free")
    backend = ops.select("auto", device)
    decoder = random_decoder(config, backend, copy=device.type == "cpu").to(device)
    decoder.place()
    return decoder


def _engine(decoder: Decoder, model: Served, teller: Teller) -> Engine:
    """With as much memory for keys and values as the cases need, or as is free."""
    needed = max(batch * kv_bytes(model.config, context) for batch, context in model.decodes)
    free = free_memory(teller.device) - _WORKSPACE
    options = EngineOptions(
        max_batch=max(batch for batch, _ in model.decodes),
        kv_memory=max(_LEAST_KV, min(free, int(1.3 * needed) + _LEAST_KV)),
        prefix_cache=False,
    )
    engine = Engine(decoder, options)
    _fill(engine)
    return engine


def _fill(engine: Engine) -> None:
    """Random keys and values in all pages, for contexts that are not computed."""
    pool = engine.runner.pool
    for kind in pool.kinds:
        pool.keys[kind].normal_()
        pool.values[kind].normal_()


def _decoding_rate(engine: Engine, teller: Teller, batch: int, context: int) -> float:
    """Tokens per second of `batch` texts together, of the median turn."""
    suite, device = teller.suite, teller.device
    steps = _UNTIMED + suite.turns * suite.steps
    ids = _begin(engine, batch, context, steps)
    try:
        for _ in range(_UNTIMED):
            _step(engine)
        taken = [
            seconds(device, lambda: [_step(engine) for _ in range(suite.steps)])
            for _ in range(suite.turns)
        ]
    finally:
        for id in ids:
            engine.abort(id)
    return batch * suite.steps / statistics.median(taken)


def _begin(engine: Engine, batch: int, context: int, steps: int) -> list[int]:
    """Put texts of `context` tokens into the engine as if their prompts had been read: their pages
    hold random numbers, which take as long to attend to as others. Each has pages of its own, and
    gets those of what it generates as any request does: there is room for `steps` tokens of each.
    """
    vocab_size, kv, scheduler = engine.config.vocab_size, engine.kv, engine.scheduler
    pages = -(-(context + steps) // kv.page_size)
    fit = min((s.num_pages - 1) // pages for s in kv.stores if s.kind.window is None)
    if fit < batch:
        raise OssiaError(f"the card's memory holds the keys and values of {fit} such texts")
    sampling = SamplingParams(temperature=0.0, max_tokens=steps + 1)
    draw, chunk = random.Random(0), kv.limits.chunk
    ids = []
    for _ in range(batch):
        ids.append(engine.add(Request([draw.randrange(vocab_size)] * context, sampling)))
        sequence = scheduler.waiting.pop()
        kv.open(sequence.text, 0)
        scheduler.running.append(sequence)
        # Layers with a window have pages for it and a chunk of each text.
        for end in [*range(chunk, context, chunk), context]:
            granted = kv.grow(sequence.text, end)
            assert granted, "a kind that has a window has pages for all texts"
            kv.commit(sequence.text, min(end, context - 1))
        sequence.computed = context - 1
    return ids


def _step(engine: Engine) -> None:
    for output in engine.step():
        if isinstance(output, Failure):
            raise output.error
