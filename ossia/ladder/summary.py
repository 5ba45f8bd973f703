"""From the runs of a ladder to its results: costs, means and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ossia.config import ExpertFormat, ModelConfig
from ossia.insight.counts import count, kv_bytes, training_flops
from ossia.ladder.plan import STRETCHES
from ossia.ladder.results import (
    AtStep,
    Beside,
    Comparison,
    Costs,
    CurvePoint,
    Measurements,
    Reach,
    Reading,
    Results,
    Run,
    RungResult,
    Stretch,
    Text,
    Topic,
    WindowLength,
)
from ossia.ladder.run import FACTORS, Ablation
from ossia.ladder.rungs import MXFP4, REACH, ROPE, SINKS, WINDOWS, Rung
from ossia.ladder.statistics import difference, over_seeds
from ossia.train.runs.folder import command

# What a question about two rungs with the same reading ends with.
_READINGS = {Reading.AS_TRAINED: "", Reading.YARN: ", both with YaRN"}

_STATE_BYTES = 16  # per parameter: weight, gradient and AdamW's two moments in float32

Runs = Mapping[str, Sequence[Run]]  # of every seed, by the rung's name, from the foot up


def summarize(
    ablation: Ablation, measured: Measurements | None = None, beside: Beside | None = None
) -> Results:
    """The results of a ladder whose runs are all finished, beside those of another one if given."""
    plan, runs = ablation.plan, ablation.results()
    flops = {
        rung.name: training_flops(config, plan.length) * plan.batch_size * plan.length
        for rung, config in ablation.rungs
    }
    # All that the cheapest rung takes: every other one has taken as much before its end.
    budget = min(flops.values()) * plan.steps
    summaries = [
        _RungSummary(rung, config, runs[rung.name], flops[rung.name], budget)
        for rung, config in ablation.rungs
    ]
    nats = _nats_per_bit_per_byte(ablation.text)
    foot, *_, top = runs.values()
    return Results(
        # Another number of threads, or another device, adds in another order.
        command=f"{command('ablate', plan, ablation.out)} {_means(ablation)}",
        versions=ablation.versions,
        threads=ablation.threads,
        plan=plan,
        text=ablation.text,
        tokens=foot[0].tokens,
        equal_flops=budget,
        rungs=tuple(
            one.result(plan.length, nats, below)
            for below, one in zip([None, *summaries], summaries, strict=False)
        ),
        climb=difference(_bits(top), _bits(foot)),
        comparisons=(*_on_length(runs, plan.length), *_on_format(runs)),
        measured=measured,
        card=ablation.card,
        beside=beside,
    )


def _means(ablation: Ablation) -> str:
    on_gpu = ablation.began_on != "cpu"
    return f"--device {ablation.began_on}" if on_gpu else f"--threads {ablation.threads}"


def _nats_per_bit_per_byte(text: Text) -> float:
    """Nats per token of the held-out texts, for each bit per byte."""
    tokens = sum(document.tokens - 1 for document in text.held_out)
    return sum(document.bytes for document in text.held_out) * math.log(2) / tokens


@dataclass(frozen=True)
class _RungSummary:
    """A rung's runs with each seed; `flops` of a training step, `budget` of the equal compute."""

    rung: Rung
    config: ModelConfig
    runs: Sequence[Run]
    flops: float
    budget: float

    @property
    def step(self) -> float:
        """At which training has taken the budget."""
        return self.budget / self.flops

    def result(self, length: int, nats: float, below: _RungSummary | None) -> RungResult:
        """nats: per token, for each bit per byte."""
        bits, at_equal_flops = _bits(self.runs), _at(self.runs, self.step)
        steps = equal = None
        if below is not None:
            steps = difference(bits, _bits(below.runs))
            equal = difference(at_equal_flops, _at(below.runs, below.step))
        formats = self.runs[0].by_format
        return RungResult(
            name=self.rung.name,
            title=self.rung.title,
            meaning=self.rung.meaning,
            field=self.rung.field,
            costs=_costs(self.config, length),
            bits_per_byte=over_seeds(bits),
            loss=over_seeds([nats * value for value in bits]),
            at_equal_flops=AtStep(self.step, over_seeds(at_equal_flops)),
            curve=tuple(
                CurvePoint(step, step * self.flops, statistics.mean(values))
                for step, values in _curves(self.runs)
            ),
            by_format={kind: over_seeds(_rounded(self.runs, kind)) for kind in formats},
            longer={reading: _reach(self.runs, reading, length) for reading in self.runs[0].longer},
            difference=steps,
            difference_at_equal_flops=equal,
        )


def _costs(config: ModelConfig, length: int) -> Costs:
    counts = count(config)
    return Costs(
        parameters=counts.parameters,
        active_parameters=counts.active_parameters,
        training_flops_per_token=training_flops(config, length),
        kv_bytes_per_token=counts.kv_bytes_per_token,
        kv_bytes_at_reach=kv_bytes(config, REACH * length),
        checkpoint_bytes=counts.checkpoint_bytes,
        training_state_bytes=_STATE_BYTES * counts.parameters,
    )


def _bits(runs: Sequence[Run]) -> list[float]:
    return [run.bits_per_byte for run in runs]


def _rounded(runs: Sequence[Run], kind: ExpertFormat) -> list[float]:
    return [run.by_format[kind] for run in runs]


def _curves(runs: Sequence[Run]) -> list[tuple[int, list[float]]]:
    """Steps, and each seed's bits per byte at them."""
    points = zip(*(run.curve for run in runs), strict=True)
    return [(p[0].step, [x.held_out_bits_per_byte for x in p]) for p in points]


def _at(runs: Sequence[Run], step: float) -> list[float]:
    """Each seed's bits per byte at a step, on the line that joins the evaluations around it."""
    curve = _curves(runs)
    for (left, before), (right, after) in pairwise(curve):
        if left <= step <= right:
            part = (step - left) / (right - left)
            return [b + part * (a - b) for b, a in zip(before, after, strict=True)]
    return curve[-1][1] if step >= curve[-1][0] else curve[0][1]


def _reach(runs: Sequence[Run], reading: Reading, length: int) -> Reach:
    found = [run.longer[reading] for run in runs]
    windows = [WindowLength(length, over_seeds(_bits(runs)))]
    for factor in FACTORS:
        values = [one.bits_per_byte[factor] for one in found]
        windows.append(WindowLength(factor * length, over_seeds(values)))
    stretch = REACH * length // STRETCHES
    by_position = zip(*(one.by_position for one in found), strict=True)
    return Reach(
        tuple(windows),
        tuple(
            Stretch((i * stretch, (i + 1) * stretch), statistics.mean(part))
            for i, part in enumerate(by_position)
        ),
    )


def _rises(runs: Sequence[Run], reading: Reading, factor: int) -> list[float]:
    """By how much bits per byte rise from the training length to `factor` times that: what a model
    gained at the training length does not count as reach.
    """
    return [run.longer[reading].bits_per_byte[factor] - run.bits_per_byte for run in runs]


def _with_below(runs: Runs, rung: Rung) -> tuple[Sequence[Run], Sequence[Run]] | None:
    """The runs of a rung and of the rung below; None if the ladder does not have it."""
    return next(
        ((runs[name], runs[below]) for below, name in pairwise(runs) if name == rung.name), None
    )


def _on_length(runs: Runs, length: int) -> Iterator[Comparison]:
    """Questions about texts longer than those of training."""
    for factor in FACTORS:
        tokens = f"rise to {factor * length} tokens"
        if pair := _with_below(runs, ROPE):
            rope, learned = (_rises(one, Reading.AS_TRAINED, factor) for one in pair)
            question = f"{tokens}, RoPE against learned positions"
            yield Comparison(Topic.LENGTH, question, difference(rope, learned))
            yarn = _rises(pair[0], Reading.YARN, factor)
            question = f"{tokens}, YaRN against plain RoPE"
            yield Comparison(Topic.LENGTH, question, difference(yarn, rope))
        for rung, against in ((WINDOWS, "windows against none"), (SINKS, "sinks against none")):
            if pair := _with_below(runs, rung):
                for reading, note in _READINGS.items():
                    if reading in pair[1][0].longer:
                        with_it, without = (_rises(one, reading, factor) for one in pair)
                        question = f"{tokens}, {against}{note}"
                        yield Comparison(Topic.LENGTH, question, difference(with_it, without))


def _on_format(runs: Runs) -> Iterator[Comparison]:
    """Questions about rounding the experts to MXFP4."""
    if pair := _with_below(runs, MXFP4):
        seen, unseen = (_rounded(one, ExpertFormat.MXFP4) for one in pair)
        dense = _rounded(pair[1], ExpertFormat.DENSE)
        question = "rounding after training that never saw it"
        yield Comparison(Topic.FORMAT, question, difference(unseen, dense))
        question = "training that saw it against training that did not"
        yield Comparison(Topic.FORMAT, question, difference(seen, unseen))
