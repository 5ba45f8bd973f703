"""Prefill and decoding speed of a model, beside the limit that memory sets at the same moment.

Decoding a token reads each weight that it uses once, so it is bounded by read bandwidth over those
bytes. The speed of shared machines drifts, so bandwidth and model are measured in turn, and figures
are medians of several turns with the lowest and the highest beside them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ossia.engine import Engine, Failure, Request, SamplingParams, TokenOutput
from ossia.engine.sampler_state import SamplerState

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=0)
SHORT_PROMPT = 32  # tokens of the prompt before decoding is timed
UNTIMED = 2  # tokens generated before: the prompt's, and one more


class Model(Protocol):
    """Anything that can be measured, ours or a peer's. It decodes greedily."""

    vocab_size: int

    @property
    def sampled(self) -> SampledModel | None:
        """The same model, sampling with `SAMPLED`; None if that cannot be measured."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Drop earlier prompts, read these and generate the first token of each."""
        ...

    def step(self) -> None:
        """Generate the next token of each."""
        ...


class SampledModel(Model, Protocol):
    """A model whose sampler can be measured alone as well."""

    def sampler_seconds(self, rows: int) -> float:
        """The time from the logits of a batch to a token of each of its sequences."""
        ...


class EngineModel:
    """Our engine as a Model, for at most `max_tokens` after a prompt. A request that fails raises
    its error.
    """

    def __init__(self, engine: Engine, max_tokens: int, *, sampled: bool = False) -> None:
        self.vocab_size = engine.config.vocab_size
        self.sampled = None if sampled else EngineModel(engine, max_tokens, sampled=True)
        self._engine, self._ids = engine, list[int]()
        sampling = SAMPLED if sampled else SamplingParams(temperature=0.0)
        self._sampling = replace(sampling, max_tokens=max_tokens)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        for request_id in self._ids:
            self._engine.abort(request_id)
        self._ids = [self._engine.add(Request(list(prompt), self._sampling)) for prompt in prompts]
        waiting = set(self._ids)
        while waiting:
            waiting -= {output.request_id for output in self._outputs()}

    def step(self) -> None:
        self._outputs()

    def sampler_seconds(self, rows: int) -> float:
        """On random logits: normal, with a standard deviation of 2."""
        logits = torch.randn(rows, self.vocab_size, generator=torch.Generator().manual_seed(0)) * 2
        states = [SamplerState(row, self._sampling, [0]) for row in range(rows)]
        sampler = self._engine.sampler
        sampler.sample(logits, states)  # builds the table of this batch
        return statistics.median(_seconds(lambda: sampler.sample(logits, states)) for _ in range(5))

    def _outputs(self) -> list[TokenOutput]:
        outputs = []
        for output in self._engine.step():
            if isinstance(output, Failure):
                raise output.error
            outputs.append(output)
        return outputs


@dataclass(frozen=True)
class Spread:
    """The median of several measurements, the lowest and the highest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Prefill:
    """One prompt of `tokens`, up to the first token after it."""

    tokens: int
    seconds: Spread
    tokens_per_second: Spread


@dataclass(frozen=True)
class Sampling:
    """Decoding with `SAMPLED`, in tokens per second of all sequences.

    sampler_seconds: from the logits of the batch to its tokens. sampler_share: that of a step.
    """

    tokens_per_second: Spread
    sampler_seconds: Spread
    sampler_share: Spread


@dataclass(frozen=True)
class Decoding:
    """Decoding `batch` sequences together, greedily, in tokens per second of all of them.

    share: of the limit that memory sets; None for several sequences, whose steps read more experts.
    sampled: the same with sampling; None where it was not measured.
    """

    batch: int
    tokens_per_second: Spread
    share: Spread | None
    sampled: Sampling | None


@dataclass(frozen=True)
class Speed:
    """The result of `measure`."""

    prefill: list[Prefill]
    decoding: list[Decoding]
    read_bytes_per_second: Spread


@dataclass(frozen=True)
class Workload:
    """Prompts of these lengths, and decoding in batches of these sizes, `turns` times over.

    tokens: generated by each sequence of a batch in a turn, after a prompt of `SHORT_PROMPT`.
    """

    prompts: Sequence[int]
    tokens: int
    batches: Sequence[int] = (1,)
    turns: int = 5

    @property
    def measurements(self) -> int:
        return self.turns * (len(self.prompts) + len(self.batches))

    @property
    def longest(self) -> int:
        """Tokens of the longest text, prompt and output together."""
        return max(*self.prompts, SHORT_PROMPT + self.tokens + UNTIMED)


def measure(
    model: Model,
    workload: Workload,
    bandwidth: Callable[[], float],
    bytes_per_token: float,
    progress: Callable[[], None] = lambda: None,
) -> Speed:
    """The speed of a model on a workload.

    bandwidth: measures and returns bytes read per second. bytes_per_token: read to decode a token
    of one sequence. progress: called after each of the workload's measurements.
    """
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(model.vocab_size) for _ in range(count)]

    firsts: dict[int, list[float]] = {length: [] for length in workload.prompts}
    batches = [_Batch(size) for size in workload.batches]
    for _ in range(workload.turns):
        for length in workload.prompts:
            prompt = ids(length)
            firsts[length].append(_seconds(lambda prompt=prompt: model.prefill([prompt])))
            progress()
        for batch in batches:
            starts = [ids(SHORT_PROMPT) for _ in range(batch.size)]
            batch.measure(model, starts, workload.tokens, bandwidth)
            progress()
    return Speed(
        [
            Prefill(length, Spread.of(found), Spread.of([length / seconds for seconds in found]))
            for length, found in firsts.items()
        ],
        [batch.result(bytes_per_token) for batch in batches],
        Spread.of([read for batch in batches for read in batch.reads]),
    )


class _Batch:
    """The measurements of decoding one batch size, turn by turn."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reads: list[float] = []  # bytes per second
        self._rates: list[float] = []
        self._sampled_rates: list[float] = []
        self._sampler_seconds: list[float] = []

    def measure(
        self,
        model: Model,
        starts: Sequence[Sequence[int]],
        tokens: int,
        bandwidth: Callable[[], float],
    ) -> None:
        def read() -> None:
            self.reads.append(bandwidth())

        self._rates.append(decoding_rate(model, starts, tokens, read))
        if model.sampled is not None:
            self._sampled_rates.append(decoding_rate(model.sampled, starts, tokens))
            self._sampler_seconds.append(model.sampled.sampler_seconds(self.size))

    def result(self, bytes_per_token: float) -> Decoding:
        pairs = zip(self._rates, self.reads, strict=True)
        shares = [rate * bytes_per_token / read for rate, read in pairs]
        return Decoding(
            self.size,
            Spread.of(self._rates),
            Spread.of(shares) if self.size == 1 else None,
            self._sampling() if self._sampled_rates else None,
        )

    def _sampling(self) -> Sampling:
        pairs = zip(self._sampler_seconds, self._sampled_rates, strict=True)
        return Sampling(
            Spread.of(self._sampled_rates),
            Spread.of(self._sampler_seconds),
            Spread.of([seconds * rate / self.size for seconds, rate in pairs]),
        )


def decoding_rate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    ready: Callable[[], object] = lambda: None,
) -> float:
    """Tokens per second of all sequences together, each generating `tokens` after its prompt;
    `ready` is called just before the clock starts.
    """
    model.prefill(prompts)
    model.step()  # allocates memory for passes of this shape
    ready()
    return len(prompts) * tokens / _seconds(lambda: [model.step() for _ in range(tokens)])


def turn_about(
    works: Mapping[str, Callable[[], float]],
    turns: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Spread]:
    """The results of all works, called one after another, `turns` times over, so that a machine
    whose speed drifts does so for all of them. `progress` is called after each.
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
