"""The report of a run: one HTML page, from the results that stand beside it as JSON."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ossia.eval.report import comparisons, systems
from ossia.eval.results import Results
from ossia.insight import page
from ossia.insight.svg import number
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
@media (max-width: 600px) {
  td:first-child, th:first-child { white-space: normal; min-width: 9em; max-width: 9em;
    overflow-wrap: break-word; }
}
"""


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
        systems.accuracy(results),
        systems.effort(results),
        systems.tasks(results),
        systems.costs(results),
        systems.several(results),
        comparisons.pairs(results),
        comparisons.disagreements(results),
        comparisons.contamination(results),
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
