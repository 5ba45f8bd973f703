"""Where the time of a prompt and of a decoding step goes: the native operations by stage.

A thread that waits for others, or for memory that another one lays out, is not busy; what is left
when all stages are added up is Python, torch, and the way between them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from ossia.measure.speed import SHORT_PROMPT, Model, Workload
from ossia.ops import _native
from ossia.ops.cpu import machine

REST = "outside native operations"


@dataclass(frozen=True)
class Stage:
    """calls: in the pass. seconds: on the clock, less stages within it. busy: seconds that all
    threads together worked.
    """

    name: str
    calls: int
    seconds: float
    busy: float


@dataclass(frozen=True)
class Pass:
    """One pass through the model, its longest stage first."""

    name: str
    seconds: float
    stages: list[Stage]


def passes(model: Model, workload: Workload) -> list[Pass]:
    """Each prompt of a workload, then a step of each of its batches: of several passes the one
    that took the median time.
    """
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(model.vocab_size) for _ in range(count)]

    found = []
    for length in workload.prompts:
        prompts = [[ids(length)] for _ in range(workload.turns)]
        reads = [lambda prompt=prompt: model.prefill(prompt) for prompt in prompts]
        found.append(_median(f"prompt of {length:,}", reads))
    for size in workload.batches:
        model.prefill([ids(SHORT_PROMPT) for _ in range(size)])
        model.step()
        together = f"{size} sequences" if size > 1 else "one sequence"
        found.append(_median(f"step of {together}", [model.step] * workload.tokens))
    return found


def _median(name: str, works: list[Callable[[], None]]) -> Pass:
    timed = sorted((_timed(name, work) for work in works), key=lambda measured: measured.seconds)
    return timed[len(timed) // 2]


def _timed(name: str, work: Callable[[], None]) -> Pass:
    used = machine()
    _native.time_stages(used)
    start = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - start
    finally:
        native = [Stage(*stage) for stage in _native.stages(used)]
    rest = max(seconds - sum(stage.seconds for stage in native), 0.0)
    native.append(Stage(REST, 1, rest, rest))
    return Pass(name, seconds, sorted(native, key=lambda stage: -stage.seconds))
