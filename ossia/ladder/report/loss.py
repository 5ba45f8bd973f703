"""The section on held-out loss: levels, steps, curves and their table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ossia.insight import page, svg
from ossia.insight.svg import Heading, Line
from ossia.ladder.report.words import flops, interval, marked, spoken, with_deviation
from ossia.ladder.results import Results, RungResult


def section(results: Results) -> str:
    rungs = results.rungs
    levels = [interval(rung.title, rung.bits_per_byte) for rung in rungs]
    steps = [interval(r.title, r.difference) for r in rungs if r.difference is not None]
    levels_plot = svg.intervals(
        Heading("levels", "Bits per byte of each rung", spoken(levels)),
        levels,
        "held-out bits per byte (lower is better)",
    )
    steps_plot = svg.intervals(
        Heading("steps", "Change made by each rung", spoken(steps)),
        steps,
        "change from the rung below (left of zero is better)",
        zero=True,
    )
    return "".join(
        [
            "<h2>Held-out loss</h2>",
            page.figure(
                levels_plot,
                "Mean of each rung (dot), each of its seeds (ring) and the 95 % confidence "
                "interval of the mean (bar).",
            ),
            page.figure(
                steps_plot,
                "Each rung minus the rung below, seed by seed (rings), so that what both owe to "
                "the seed cancels, above all its batches. A bar that crosses zero is no evidence "
                "either way.",
            ),
            _loss_table(rungs),
            page.note(
                "± is the standard deviation over the seeds in the loss columns, and half of the "
                "95 % interval in the differences. <b>Equal compute</b> reads each curve at "
                f"{flops(results.equal_flops)} FLOPs, the whole training of the cheapest rung. A "
                "more expensive rung is read before its end, when its learning rate has not quite "
                "fallen to zero, which slightly favours the cheaper one."
            ),
            _curves(results),
        ]
    )


def _curves(results: Results) -> str:
    unit, power = svg.power(results.equal_flops)
    foot, top = results.rungs[0], results.rungs[-1]
    heading = Heading(
        "curves",
        "Bits per byte during training",
        f"The first and the last rung over training FLOPs; all rungs are compared at "
        f"{flops(results.equal_flops)}.",
    )
    plot = svg.lines(
        heading,
        [Line(r.title, [(p.flops / unit, p.bits_per_byte) for p in r.curve]) for r in (foot, top)],
        (f"training FLOPs, {power}", "held-out bits per byte"),
        marks=[(results.equal_flops / unit, "equal compute")],
    )
    return page.figure(plot, "The foot and the top of the ladder, mean over the seeds.")


def _loss_table(rungs: Sequence[RungResult]) -> str:
    head = [
        "rung",
        "loss, nats per token",
        "bits per byte",
        "against the rung below",
        "bits per byte at equal compute",
        "against the rung below",
    ]
    rows = [
        [
            escape(rung.title),
            with_deviation(rung.loss),
            with_deviation(rung.bits_per_byte),
            marked(rung.difference),
            with_deviation(rung.at_equal_flops.value),
            marked(rung.difference_at_equal_flops),
        ]
        for rung in rungs
    ]
    return page.table(head, rows)
