"""From the results of every run to what the ladder has to say: costs, means, paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from ossia.config import ModelConfig
from ossia.insight.counts import count, kv_bytes, training_flops
from ossia.ladder.run import FACTORS, STRETCHES, Ablation
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import difference, spread
from ossia.train.runs.folder import command

_STATE_BYTES = 16  # of a parameter in training: weight, gradient and AdamW's two moments, float32

Results = dict[str, list[dict[str, Any]]]  # by rung, of each seed


def summarize(ablation: Ablation) -> dict[str, Any]:
    """Everything the report shows of the runs, ready for JSON; all must be finished."""
    plan, results = ablation.plan, ablation.results()
    configs = {rung.name: config for rung, config in ablation.rungs}
    flops = {
        name: training_flops(config, plan.length) * plan.batch_size * plan.length
        for name, config in configs.items()
    }
    # The cheapest rung's whole training: every other rung has spent as much before its end.
    budget = min(flops.values()) * plan.steps
    tokens = sum(document["tokens"] - 1 for document in ablation.text["held_out"])
    bits = sum(document["bytes"] for document in ablation.text["held_out"]) * math.log(2) / tokens
    rungs: list[dict[str, Any]] = []
    before: str | None = None
    for rung, config in ablation.rungs:
        runs = results[rung.name]
        found = {
            "name": rung.name,
            "title": rung.title,
            "meaning": rung.meaning,
            "field": rung.field,
            **_costs(config, plan.length),
            "bits_per_byte": spread(_bits(runs)),
            "loss": spread([bits * value for value in _bits(runs)]),
            "at_equal_flops": {
                "step": budget / flops[rung.name],
                **spread(_at(runs, budget / flops[rung.name])),
            },
            "curve": [
                {
                    "step": step,
                    "flops": step * flops[rung.name],
                    "bits_per_byte": statistics.mean(values),
                }
                for step, values in _curves(runs)
            ],
            "by_format": {
                kind: spread([run["by_format"][kind] for run in runs])
                for kind in runs[0]["by_format"]
            },
            "longer": {way: _longer(runs, way, plan.length) for way in runs[0]["longer"]},
        }
        if before is not None:
            steps = budget / flops[rung.name], budget / flops[before]
            found["difference"] = difference(_bits(runs), _bits(results[before]))
            found["difference_at_equal_flops"] = difference(
                _at(runs, steps[0]), _at(results[before], steps[1])
            )
        rungs.append(found)
        before = rung.name
    return {
        # Sums are made in another order by another number of threads.
        "command": f"{command('ablate', plan, ablation.out)} --threads {ablation.threads}",
        "versions": ablation.versions,
        "threads": ablation.threads,
        "plan": asdict(plan),
        "text": ablation.text,
        "tokens": results[rungs[0]["name"]][0]["tokens"],
        "equal_flops": budget,
        "rungs": rungs,
        "climb": difference(_bits(results[rungs[-1]["name"]]), _bits(results[rungs[0]["name"]])),
        "comparisons": _comparisons(list(configs), results, plan.length),
    }


def _costs(config: ModelConfig, length: int) -> dict[str, Any]:
    """What follows from the config alone, in parameters, bytes and operations."""
    counts = count(config)
    return {
        "parameters": counts.parameters,
        "active_parameters": counts.active_parameters,
        "training_flops_per_token": training_flops(config, length),
        "kv_bytes_per_token": counts.kv_bytes_per_token,
        "kv_bytes_at_reach": kv_bytes(config, REACH * length),
        "checkpoint_bytes": counts.checkpoint_bytes,
        "training_state_bytes": _STATE_BYTES * counts.parameters,
    }


def _bits(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [run["bits_per_byte"] for run in runs]


def _curves(runs: Sequence[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    """Steps, and each seed's bits per byte at them."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [(p[0]["step"], [x["held_out_bits_per_byte"] for x in p]) for p in points]


def _at(runs: Sequence[dict[str, Any]], step: float) -> list[float]:
    """Each seed's bits per byte at a step between two evaluations, on the line that joins them."""
    curve = _curves(runs)
    for (left, before), (right, after) in pairwise(curve):
        if left <= step <= right:
            part = (step - left) / (right - left)
            return [b + part * (a - b) for b, a in zip(before, after, strict=True)]
    return curve[-1][1] if step >= curve[-1][0] else curve[0][1]


def _longer(runs: Sequence[dict[str, Any]], way: str, length: int) -> dict[str, Any]:
    """Bits per byte in windows of each length, and at each stretch of the longest."""
    found = [run["longer"][way] for run in runs]
    by_length = {length: spread(_bits(runs))}
    for factor in FACTORS:
        values = [one["bits_per_byte"][str(factor)] for one in found]
        by_length[factor * length] = spread(values)
    stretch = REACH * length // STRETCHES
    return {
        "by_length": [{"tokens": tokens, **value} for tokens, value in by_length.items()],
        "by_position": [
            {"positions": [i * stretch, (i + 1) * stretch], "bits_per_byte": statistics.mean(part)}
            for i, part in enumerate(zip(*(one["by_position"] for one in found), strict=True))
        ],
    }


def _comparisons(names: list[str], results: Results, length: int) -> list[dict[str, Any]]:
    """Questions on longer texts and on rounding, each answered by a paired difference.

    Of longer texts it is the rise over the bits per byte at the training length: what a model
    gained there already is no merit of its reach.
    """
    found: list[dict[str, Any]] = []

    def compare(about: str, question: str, after: list[float], before: list[float]) -> None:
        found.append({"about": about, "question": question, **difference(after, before)})

    def rises(name: str, way: str, factor: int) -> list[float]:
        return [
            run["longer"][way]["bits_per_byte"][str(factor)] - run["bits_per_byte"]
            for run in results[name]
        ]

    def rounded(name: str, kind: str) -> list[float]:
        return [run["by_format"][kind] for run in results[name]]

    for factor in FACTORS:
        tokens = f"rise to {factor * length} tokens"
        if "rope" in names:
            last = names[names.index("rope") - 1]
            rope = rises("rope", "as trained", factor)
            learned = rises(last, "as trained", factor)
            compare("length", f"{tokens}, RoPE against learned positions", rope, learned)
            yarn = rises("rope", "yarn", factor)
            compare("length", f"{tokens}, YaRN against plain RoPE", yarn, rope)
        if "sinks" in names:
            last = names[names.index("sinks") - 1]
            for way, with_yarn in (("as trained", ""), ("yarn", ", both with YaRN")):
                if way in results[last][0]["longer"]:
                    sinks, none = rises("sinks", way, factor), rises(last, way, factor)
                    compare("length", f"{tokens}, sinks against none{with_yarn}", sinks, none)
    if "mxfp4" in names:
        last = names[names.index("mxfp4") - 1]
        dense, plain = rounded(last, "dense"), rounded(last, "mxfp4")
        compare("format", "rounding after training that never saw it", plain, dense)
        seen = rounded("mxfp4", "mxfp4")
        compare("format", "training that saw it against training that did not", seen, plain)
    return found
