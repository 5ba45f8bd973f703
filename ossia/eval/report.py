"""The report of a run: one HTML page, from the results that stand beside it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ossia.errors import shortened
from ossia.eval.results import Disagreement, Pair, Results, Share, System
from ossia.insight import page, svg
from ossia.insight.svg import Heading, Line, number
from ossia.system.files import write_bytes, write_json, writing

_TITLE = "How many questions the models answer"
_STYLE = """
.better { font-weight: 600; }
.noise { color: var(--quiet); }
svg.plot .dot { fill: var(--paper); stroke-width: 2; stroke-dasharray: none; }
details { margin: .4em 0; border-bottom: 1px solid var(--edge); padding-bottom: .4em; }
summary { cursor: pointer; overflow-wrap: anywhere; }
details pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.right::before { content: "\\2713  "; }
.wrong::before { content: "\\2717  "; }
"""
_MOST_DISAGREEMENTS = 60
_MOST_ROWS = 12  # of a plot
_LINES = 3  # in a plot


def write(results: Results, out: Path) -> Path:
    """Write results.json and report.html into the folder; returns the page's path."""
    file = out / "report.html"
    with writing(out):
        write_json(out / "results.json", results.to_json())
        write_bytes(file, render(results).encode("utf-8", "replace"))
    return file


def render(results: Results) -> str:
    """The whole page; it fetches and runs nothing."""
    parts = [
        _head(results),
        _accuracy(results),
        _effort(results),
        _tasks(results),
        _costs(results),
        _several(results),
        _pairs(results),
        _disagreements(results),
        _contamination(results),
        _published(results),
        _method(results),
    ]
    return page.page(_TITLE, parts, _STYLE)


def _head(results: Results) -> str:
    count = sum(results.tasks.values())
    times = "once" if results.repeat == 1 else f"{results.repeat} times"
    missing = (
        f"<p><b>{number(results.unasked, 0)} replies are missing</b>: the run is not whole.</p>"
        if results.unasked
        else ""
    )
    tasks = "one task" if len(results.tasks) == 1 else f"{len(results.tasks)} tasks"
    return (
        f"<h1>{_TITLE}</h1><p>{number(count, 0)} questions of {tasks}, each asked {times} of "
        f"{number(len(results.systems), 0)} models and efforts.</p>{missing}"
    )


def _accuracy(results: Results) -> str:
    rows = [
        svg.Interval(
            _label(system),
            100 * system.overall.accuracy,
            None,
            ends=(100 * system.overall.interval.low, 100 * system.overall.interval.high),
        )
        for system in results.systems
    ]
    spoken = "; ".join(f"{s.name} {_percent(s.overall.accuracy)}" for s in results.systems)
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
                _percent(system.overall.accuracy),
                _interval(system.overall),
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


def _effort(results: Results) -> str:
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


def _tasks(results: Results) -> str:
    if len(results.tasks) < 2:
        return ""
    rows = [
        [
            escape(task),
            number(count, 0),
            *(_with_interval(s.by_task.get(task)) for s in results.systems),
        ]
        for task, count in results.tasks.items()
    ]
    head = ["task", "questions", *(system.name for system in results.systems)]
    return (
        "<h2>Task by task</h2>"
        + page.table(head, rows)
        + page.note("Share of right answers, and below it Wilson's 95 % interval.")
    )


def _costs(results: Results) -> str:
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
            _unknown(s.reasoning_tokens),
            _unknown(None if s.reasoning_tokens is None else s.tokens - s.reasoning_tokens),
            number(s.calls, 2),
            number(s.seconds, 2),
            _unknown(s.cost, 4),
            _count(s.malformed, s.replies),
            _count(s.truncated, s.replies),
            _count(s.no_answer, s.replies),
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


def _several(results: Results) -> str:
    if results.repeat == 1:
        return ""
    sizes = sorted({k for system in results.systems for k in system.pass_at})
    rows = [
        [
            escape(system.name),
            *(_percent(system.pass_at[k]) if k in system.pass_at else "" for k in sizes),
            "" if system.majority is None else _percent(system.majority),
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


def _pairs(results: Results) -> str:
    if not results.pairs:
        return ""
    once = any(pair.p is not None for pair in results.pairs)
    rows = [
        [
            f"{escape(pair.other)}<br>against {escape(pair.one)}",
            _marked(pair),
            f"{_signed(pair.interval.low)} to {_signed(pair.interval.high)}",
            *([f"{pair.p:.3g}" if pair.p is not None else ""] if once else []),
            str(pair.only_other),
            str(pair.only_one),
            number(pair.questions, 0),
        ]
        for pair in results.pairs
    ]
    head = [
        "pair",
        "difference, points",
        "95 % interval",
        *(["p"] if once else []),
        "the first is better on",
        "the second is better on",
        "of questions",
    ]
    return (
        "<h2>Pair by pair, on the same questions</h2>"
        + page.table(head, rows)
        + page.note(
            "The interval is that of the bootstrap over questions"
            + (", p that of McNemar's exact test" if once else "")
            + ". Differences in grey are within the noise. One pair "
            "of equal models in twenty seems to differ by chance."
        )
    )


def _marked(pair: Pair) -> str:
    kind = "better" if pair.differs else "noise"
    return f'<span class="{kind}">{_signed(pair.difference)}</span>'


def _disagreements(results: Results) -> str:
    found = results.disagreements
    if not found:
        return ""
    shown = found[:_MOST_DISAGREEMENTS]
    more = (
        f" The first {len(shown)} are shown; all are in results.json."
        if len(found) > len(shown)
        else ""
    )
    return (
        f"<h2>Where they disagree</h2><p>{number(len(found), 0)} questions are answered by some "
        f"and not by others.{more}</p>" + "".join(map(_disagreement, shown))
    )


def _disagreement(one: Disagreement) -> str:
    first = shortened(" ".join(one.text.split()), 90)
    rows = [
        [
            f'<span class="{"right" if said.right else "wrong"}">{escape(said.system)}</span>',
            escape(said.answer) + (f" <i>({escape(said.note)})</i>" if said.note else ""),
        ]
        for said in one.said
    ]
    answers = f"<p>On file: {escape(' or '.join(one.answers))}</p>" if one.answers else ""
    return (
        f"<details><summary>{escape(one.task)}: {escape(first)}</summary>"
        f"<pre>{escape(one.text)}</pre>{answers}{page.table(['', 'answer'], rows, 'words')}"
        "</details>"
    )


def _contamination(results: Results) -> str:
    found = results.contamination
    if found is None:
        return ""
    parts = [
        "<h2>Questions in the training text</h2>",
        f"<p>Of {number(found.checked, 0)} questions long enough to tell, "
        f"{number(len(found.found), 0)} share {found.n} words in a row, or all of theirs if they "
        f"have fewer, with {escape(found.text)}. That is a hint and no proof.</p>",
    ]
    rows = [
        [escape(s.name), _with_interval(s.overlapping), _with_interval(s.clean)]
        for s in results.systems
        if s.overlapping is not None
    ]
    if rows:
        head = ["model and effort", "right, questions that overlap", "right, the others"]
        parts.append(page.table(head, rows))
        shown = sorted(found.found, key=lambda overlap: -overlap.share)[:20]
        items = (f"{escape(o.question)}: {o.share:.0%} of its n-grams" for o in shown)
        parts.append(page.bullets(items))
    return "".join(parts)


def _published(results: Results) -> str:
    if not results.published:
        return ""
    rows = [
        [
            escape(figure.data_set),
            escape(figure.model),
            escape(figure.effort),
            f"{figure.percent:.1f}%",
            escape(figure.source),
        ]
        for figure in results.published
    ]
    return (
        "<h2>Figures that others published</h2><p>None of these was measured in this run. Their "
        "prompts, samplings and graders were others, so a difference from the figures above is "
        "not only one between models.</p>"
        + page.table(["data set", "model", "effort", "right", "source"], rows, "words")
    )


def _method(results: Results) -> str:
    drawn = ", ".join(f"{key} {value}" for key, value in results.sampling.items())
    limit = results.max_tokens
    length = "without a limit" if limit is None else f"of at most {number(limit, 0)} tokens"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    items = [
        "All models were asked the same questions in the same words, through their own chat "
        "formats.",
        f"Sampling: {escape(drawn) or 'as each model states it'}; replies {length}.",
        "Intervals are over questions: another set of questions like these would give figures "
        "within them 95 times in 100.",
        *(f"Prompt of {escape(task)}: {escape(s)}." for task, s in results.sources.items()),
        *([f"Judge: {escape(results.judge)}."] if results.judge else []),
        f"Versions: {escape(versions)}. All figures and answers are in results.json.",
    ]
    return "<h2>How it was measured</h2>" + page.bullets(items)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _signed(value: float) -> str:
    return number(100 * value, 1, sign=True)


def _interval(found: Share) -> str:
    return f"{_percent(found.interval.low)} to {_percent(found.interval.high)}"


def _with_interval(found: Share | None) -> str:
    if found is None or not found.questions:
        return ""
    return f'{_percent(found.accuracy)}<br><span class="noise">{_interval(found)}</span>'


def _count(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.1f}%)" if count else "0"


def _unknown(value: float | None, digits: int = 0) -> str:
    return "?" if value is None else number(value, digits)
