"""The sections on experts in four bits, on cost, and on speed and memory."""

from __future__ import annotations

from html import escape

from ossia.config import ExpertFormat
from ossia.insight import page
from ossia.insight.svg import number
from ossia.ladder.report.words import answers, flops, threads, with_deviation
from ossia.ladder.results import Reading, Results, Topic
from ossia.ladder.rungs import MXFP4
from ossia.measure.speed import Spread

# On a CPU; a GPU's kernel drops within its tiles.
_DROPOUT = (
    "Attention dropout needs all attention probabilities, so a model with it trains without the "
    "tiled kernel of the others, which is part of its extra time and memory. "
)


def rounding(results: Results) -> str:
    formats = [ExpertFormat.DENSE, ExpertFormat.MXFP4]
    rows = [
        [escape(rung.title), *(with_deviation(rung.by_format[kind]) for kind in formats)]
        for rung in results.rungs
        if ExpertFormat.MXFP4 in rung.by_format
    ]
    if not rows:
        return ""
    return (
        "<h2>Experts in four bits</h2><p>Bits per byte with the experts as trained, and rounded to "
        f"MXFP4 as in a checkpoint. The rung {MXFP4.title} rounds them in the last quarter of its "
        "training, and its figures elsewhere on this page are with rounded experts.</p>"
        + page.table(["rung", "as trained", "rounded to MXFP4"], rows)
        + answers(results.comparisons, Topic.FORMAT)
    )


def costs(results: Results) -> str:
    reach = results.rungs[0].longer[Reading.AS_TRAINED].by_length[-1].tokens
    head = [
        "rung",
        "parameters",
        "active",
        "training FLOPs per token",
        "KV bytes per token",
        f"KV bytes of {number(reach, 0)} tokens",
        "checkpoint, bytes",
    ]
    rows = [
        [
            escape(rung.title),
            number(rung.costs.parameters, 0),
            number(rung.costs.active_parameters, 0),
            flops(rung.costs.training_flops_per_token),
            number(rung.costs.kv_bytes_per_token, 0),
            number(rung.costs.kv_bytes_at_reach, 0),
            number(rung.costs.checkpoint_bytes, 0),
        ]
        for rung in results.rungs
    ]
    return (
        "<h2>Cost</h2>"
        + page.table(head, rows)
        + page.note(
            "Counted from the configs; keys, values and checkpoints in bfloat16, MXFP4 experts "
            "packed. A model with learned positions has a table for the longest text that it is "
            "evaluated on."
        )
    )


def speeds(results: Results) -> str:
    measured, plan = results.measured, results.plan
    if measured is None:
        return "<p>Speed and memory were not measured.</p>"
    head = [
        "rung",
        "training, tokens/s",
        "decoding, tokens/s",
        "weights, gradients, moments, MB",
        "activations kept for the gradient, MB",
    ]
    rows = []
    for rung in results.rungs:
        found = measured.rungs[rung.name]
        speeds = [_range(found.training), _range(found.decoding)]
        sizes = [rung.costs.training_state_bytes, found.activation_bytes]
        rows.append([escape(rung.title), *speeds, *(number(size / 1e6, 1) for size in sizes)])
    return page.table(head, rows) + page.note(
        f"{_trained_on(results)}{escape(measured.machine.processor)}, "
        f"{threads(measured.threads)}, {escape(measured.date)}. The rungs were measured in turn, "
        f"{measured.turns} times: median, lowest and highest. A training step is one batch of "
        f"{plan.batch_size} x {plan.length} tokens in {plan.dtype}; decoding is one sequence in "
        f"bfloat16 on the {escape(measured.backend)} backend, with random weights of the rung's "
        "shapes. At this size the overhead of each operation dominates both, and they say little "
        f"about large models. {_DROPOUT if results.card is None else ''}"
        f"The rung {MXFP4.title} is timed with rounding in every step."
    )


def _trained_on(results: Results) -> str:
    """The GPU that training was measured on; everything else ran on the processor."""
    return "" if results.card is None else f"Training on {escape(results.card)}, decoding on "


def _range(found: Spread) -> str:
    low, high = number(found.least, 0), number(found.most, 0)
    return f"{number(found.median, 0)} ({low} to {high})"
