"""What each model at each effort does: how much is right, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ossia.errors import shortened
from ossia.eval.report.cells import interval, or_unknown, percent, share, with_interval
from ossia.eval.results import Results, System
from ossia.insight import page, svg
from ossia.insight.svg import Heading, Line, number

_MOST_ROWS = 12  # of a plot
_LINES = 3  # in a plot


def accuracy(results: Results) -> str:
    """The share of right answers of each system, as plots and a table."""
    rows = [
        svg.Interval(
            _label(system),
            100 * system.overall.accuracy,
            None,
            ends=(100 * system.overall.interval.low, 100 * system.overall.interval.high),
        )
        for system in results.systems
    ]
    spoken = "; ".join(f"{s.name} {percent(s.overall.accuracy)}" for s in results.systems)
    plots = [
        page.figure(
            svg.intervals(
                Heading(f"accuracy{start}", "Share of right answers", spoken),
                rows[start : start + _MOST_ROWS],
                "right answers, %",
            ),
            "Share of right answers (dot) with Wilson's 95 % interval (bar).",
        )
        for start in range(0, len(rows), _MOST_ROWS)
    ]
    table = page.table(
        ["model and effort", "right", "95 % interval", "questions", "replies"],
        [
            [
                escape(system.name),
                percent(system.overall.accuracy),
                interval(system.overall),
                number(system.overall.questions, 0),
                number(system.replies, 0),
            ]
            for system in results.systems
        ],
    )
    return "<h2>Accuracy</h2>" + "".join(plots) + table


def _label(system: System) -> str:
    """The name, cut to the width that a plot has for it."""
    effort = f" {system.effort}" if system.effort else ""
    return shortened(system.name.removesuffix(effort), 18 - len(effort)) + effort


def effort(results: Results) -> str:
    """Accuracy against tokens, a line for each model through its efforts."""
    models: dict[str, list[System]] = {}
    for system in results.systems:
        models.setdefault(system.model, []).append(system)
    lines = [
        Line(
            _model_name(systems),
            sorted((s.tokens, 100 * s.overall.accuracy) for s in systems),
            dots=True,
        )
        for systems in models.values()
    ]
    if all(len(line.points) == 1 for line in lines) and len(lines) < 2:
        return ""
    plots = []
    for start in range(0, len(lines), _LINES):
        some = lines[start : start + _LINES]
        spoken = "; ".join(
            f"{line.name}: " + ", ".join(f"{y:.0f} % at {x:.0f} tokens" for x, y in line.points)
            for line in some
        )
        plot = svg.lines(
            Heading(f"effort{start}", "Accuracy against tokens", spoken),
            some,
            ("tokens of a reply, reasoning and answer", "right answers, %"),
        )
        plots.append(page.figure(plot, "Each dot is an effort of a model: what it costs and buys."))
    return "<h2>What an effort costs and buys</h2>" + "".join(plots)


def _model_name(systems: Sequence[System]) -> str:
    name, effort = systems[0].name, systems[0].effort
    return shortened(name.removesuffix(effort).strip(), 18)


def tasks(results: Results) -> str:
    """Accuracy task by task; nothing where there is one."""
    if len(results.tasks) < 2:
        return ""
    rows = [
        [
            escape(task),
            number(count, 0),
            *(with_interval(s.by_task.get(task)) for s in results.systems),
        ]
        for task, count in results.tasks.items()
    ]
    head = ["task", "questions", *(system.name for system in results.systems)]
    return (
        "<h2>Task by task</h2>"
        + page.table(head, rows)
        + page.note("Share of right answers, and below it Wilson's 95 % interval.")
    )


def costs(results: Results) -> str:
    """Tokens, seconds and cost of a reply, and what is wrong with some."""
    head = [
        "model and effort",
        "tokens of a reply",
        "of reasoning",
        "of the answer",
        "tool calls",
        "seconds",
        "cost, US$",
        "malformed",
        "cut off",
        "no answer found",
    ]
    rows = [
        [
            escape(s.name),
            number(s.tokens, 0),
            or_unknown(s.reasoning_tokens),
            or_unknown(None if s.reasoning_tokens is None else s.tokens - s.reasoning_tokens),
            number(s.calls, 2),
            number(s.seconds, 2),
            or_unknown(s.cost, 4),
            share(s.malformed, s.replies),
            share(s.truncated, s.replies),
            share(s.no_answer, s.replies),
        ]
        for s in results.systems
    ]
    return (
        "<h2>What a reply takes, and what is wrong with it</h2>"
        + page.table(head, rows)
        + page.note(
            "Means of a reply, with the markup of its chat format among the tokens of the answer. "
            "Seconds are those of a reply while others were answered, with the wait for an "
            "endpoint's rate limit. The cost is that of all replies, at the prices that were "
            "given. Malformed replies break the rules of their chat format. A reply that is cut "
            "off, or in which no answer is found, is wrong unless it is right by its text."
        )
    )


def several(results: Results) -> str:
    """pass@k and the majority; nothing where each question was asked once."""
    if results.repeat == 1:
        return ""
    sizes = sorted({k for system in results.systems for k in system.pass_at})
    rows = [
        [
            escape(system.name),
            *(percent(system.pass_at[k]) if k in system.pass_at else "" for k in sizes),
            "" if system.majority is None else percent(system.majority),
        ]
        for system in results.systems
    ]
    head = ["model and effort", *(f"pass@{k}" for k in sizes), f"majority of {results.repeat}"]
    return (
        "<h2>Several replies</h2>"
        + page.table(head, rows)
        + page.note(
            "pass@k: the chance that one of k replies is right, by the unbiased estimator. "
            "Majority: whether the most common answer is right, a tie counting in part."
        )
    )
