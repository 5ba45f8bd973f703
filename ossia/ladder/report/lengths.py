"""The section on texts longer than those of training."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from ossia.insight import page, svg
from ossia.insight.svg import Heading, Line
from ossia.ladder.report.words import answers, plain, with_deviation
from ossia.ladder.results import Reading, Results, RungResult, Topic
from ossia.ladder.rungs import REACH, ROPE, SINKS, WINDOWS, Rung


def section(results: Results) -> str:
    length = results.plan.length
    parts = [
        "<h2>Beyond the training length</h2>",
        f"<p>Models trained on sequences of {length} tokens read longer ones. Learned positions "
        "have vectors there that were never trained. YaRN is applied at evaluation, without "
        "further training, with the factor of the longer text.</p>",
        _position_figure(
            results,
            ROPE,
            "RoPE against learned positions",
            {"RoPE": Reading.AS_TRAINED, "RoPE + YaRN": Reading.YARN},
        ),
        _position_figure(
            results, WINDOWS, "Sliding windows against none", {"windows": Reading.AS_TRAINED}
        ),
        _position_figure(
            results, SINKS, "Attention sinks against none", {"sinks": Reading.AS_TRAINED}
        ),
        _length_table(results.rungs),
    ]
    if listed := answers(results.comparisons, Topic.LENGTH):
        parts.append(
            "<p>Paired by seed, in bits per byte: the rise from windows of the training length to "
            "longer ones, so that a gain at the training length does not count.</p>" + listed
        )
    return "".join(parts)


def _position_figure(results: Results, rung: Rung, title: str, series: dict[str, Reading]) -> str:
    """What a rung changes by position; nothing if the ladder does not have it."""
    pairs = pairwise(results.rungs)
    found = next(((one, below) for below, one in pairs if one.name == rung.name), None)
    if found is None:
        return ""
    drawn = [Line(name, _change_by_position(*found, reading)) for name, reading in series.items()]
    ends = ", ".join(f"{line.name} {plain(line.points[-1][1])}" for line in drawn)
    plot = svg.lines(
        Heading(
            rung.name,
            f"{title}: change in bits per byte by position",
            f"At the last positions: {ends}.",
        ),
        drawn,
        ("position in the text, tokens", "change in held-out bits per byte"),
        marks=[(results.plan.length, "trained to here")],
        zero=True,
        height=220,
    )
    return page.figure(
        plot,
        f"{title}, by position in windows of {REACH} times the training length: mean over the "
        "seeds, below zero is better. Both models read the same tokens, so easy and hard passages "
        "cancel.",
    )


def _change_by_position(
    rung: RungResult, below: RungResult, reading: Reading
) -> list[tuple[float, float]]:
    """The middle of each stretch of positions, and bits per byte minus those of the rung below, as
    trained.
    """
    stretches = zip(
        rung.longer[reading].by_position,
        below.longer[Reading.AS_TRAINED].by_position,
        strict=True,
    )
    return [(one.middle, one.bits_per_byte - other.bits_per_byte) for one, other in stretches]


def _length_table(rungs: Sequence[RungResult]) -> str:
    windows = rungs[0].longer[Reading.AS_TRAINED].by_length
    head = ["bits per byte in windows of", *(f"{window.tokens} tokens" for window in windows)]
    rows = []
    for rung in rungs:
        for reading, reach in rung.longer.items():
            suffix = " + YaRN" if reading is Reading.YARN else ""
            cells = [with_deviation(window.bits_per_byte) for window in reach.by_length]
            rows.append([escape(rung.title) + suffix, *cells])
    return page.table(head, rows)
