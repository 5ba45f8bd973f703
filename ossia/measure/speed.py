"""How fast a model reads prompts and makes tokens, beside what memory allows in the same moment.

Decoding a token reads each weight it uses once, so its limit is read bandwidth over those bytes.
Shared machines drift: bandwidth and model are measured in turns, and figures are medians of
turns with the least and the most beside them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ossia.engine import Engine, Request, SamplingParams

SHORT_PROMPT = 32  # tokens read before decoding is timed
UNTIMED = 2  # tokens made before: the prompt's, and one more


class Model(Protocol):
    """What can be measured: ours, or a peer's."""

    vocab_size: int

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Forget what was read before, read these, and make the first token of each."""
        ...

    def step(self) -> None:
        """Make the next token of each."""
        ...


class EngineModel:
    """Our engine as a Model; greedy. After a prompt it makes at most `max_tokens`."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self.vocab_size = engine.config.vocab_size
        self._engine, self._ids = engine, list[int]()
        self._sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        for request_id in self._ids:
            self._engine.abort(request_id)
        self._ids = [self._engine.add(Request(list(prompt), self._sampling)) for prompt in prompts]
        waiting = set(self._ids)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step()}

    def step(self) -> None:
        self._engine.step()


@dataclass(frozen=True)
class Spread:
    """The median of several measurements, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Prefill:
    """Reading one prompt of `tokens`, up to its first token."""

    tokens: int
    seconds: Spread
    tokens_per_second: Spread


@dataclass(frozen=True)
class Decoding:
    """Decoding by `batch` sequences together. Rates are of all of them, in tokens per second;
    `share` is of the limit, for one sequence: of several each step reads more experts.
    """

    batch: int
    tokens_per_second: Spread
    share: Spread | None


@dataclass(frozen=True)
class Speed:
    """What `measure` found."""

    prefill: list[Prefill]
    decoding: list[Decoding]
    read_bytes_per_second: Spread


def measure(
    model: Model,
    bandwidth: Callable[[], float],
    bytes_per_token: float,
    *,
    prompts: Sequence[int],
    tokens: int,
    batches: Sequence[int] = (1,),
    turns: int = 5,
    progress: Callable[[], None] = lambda: None,
) -> Speed:
    """Read prompts of these lengths and decode, `turns` times over.

    tokens: made by each sequence of a batch in a turn, after a prompt of `SHORT_PROMPT`. bandwidth:
    measures and returns bytes per second. progress: called `turns * (prompts + batches)` times.
    """
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(model.vocab_size) for _ in range(count)]

    reads: list[float] = []
    firsts: dict[int, list[float]] = {length: [] for length in prompts}
    rates: dict[int, list[float]] = {batch: [] for batch in batches}
    shares: list[float] = []
    for _ in range(turns):
        for length in prompts:
            prompt = ids(length)
            firsts[length].append(_seconds(lambda prompt=prompt: model.prefill([prompt])))
            progress()
        for batch in batches:
            starts = [ids(SHORT_PROMPT) for _ in range(batch)]
            rate = decoding_rate(model, starts, tokens, lambda: reads.append(bandwidth()))
            rates[batch].append(rate)
            if batch == 1:
                shares.append(rate * bytes_per_token / reads[-1])
            progress()
    return Speed(
        [
            Prefill(length, Spread.of(found), Spread.of([length / seconds for seconds in found]))
            for length, found in firsts.items()
        ],
        [
            Decoding(batch, Spread.of(found), Spread.of(shares) if batch == 1 else None)
            for batch, found in rates.items()
        ],
        Spread.of(reads),
    )


def decoding_rate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    ready: Callable[[], object] = lambda: None,
) -> float:
    """Tokens per second of all sequences together, `tokens` each after their prompts; `ready` is
    called just before the clock is started.
    """
    model.prefill(prompts)
    model.step()  # memory for the first pass of this shape is taken now
    ready()
    return len(prompts) * tokens / _seconds(lambda: [model.step() for _ in range(tokens)])


def turn_about(
    works: Mapping[str, Callable[[], float]],
    turns: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Spread]:
    """What each work returns, one after another, `turns` times over: a machine that drifts so
    drifts for all. `progress` is called after each.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            found[name].append(work())
            progress()
    return {name: Spread.of(values) for name, values in found.items()}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
