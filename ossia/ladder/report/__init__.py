"""The report of a ladder: one HTML page, from the results that stand beside it as JSON."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ossia.insight import page
from ossia.insight.svg import number
from ossia.ladder.report import costs, lengths, loss, method, outcome, scales
from ossia.ladder.report.outcome import findings
from ossia.ladder.report.words import seeds
from ossia.ladder.results import Results
from ossia.system.files import write_bytes, write_json, writing
from ossia.train.settings import Precision

__all__ = ["findings", "render", "write"]

_TITLE = "From GPT-2 to gpt-oss, rung by rung"
_STYLE = """
.better, .worse { font-weight: 600; }
.unclear { color: var(--quiet); }
"""


def write(results: Results, out: Path) -> Path:
    """Write results.json and report.html into the folder; returns the page's path."""
    file = out / "report.html"
    with writing(out):
        write_json(out / "results.json", results.to_json())
        write_bytes(file, render(results).encode())
    return file


def render(results: Results) -> str:
    """The whole page; it fetches and runs nothing."""
    parts = [
        _head(results),
        outcome.section(results),
        scales.section(results),
        loss.section(results),
        lengths.section(results),
        costs.rounding(results),
        costs.costs(results),
        costs.speeds(results),
        method.method(results),
        method.reproduce(results),
    ]
    return page.page(_TITLE, parts, _STYLE)


def _head(results: Results) -> str:
    plan, foot = results.plan, results.rungs[0]
    return (
        f"<h1>{_TITLE}</h1>"
        "<p>Each rung changes one choice of the model below it. All models were trained on the "
        f"same {number(results.tokens, 0)} tokens with {seeds(plan.seeds)}: {plan.layers} layers "
        f"of width {plan.hidden}, {number(foot.costs.active_parameters, 0)} active parameters, "
        f"{plan.length} tokens per sequence{_where(results)}. These models are small and were "
        "trained briefly: what helps here may not help at another size, and vice versa.</p>"
        + page.table(
            ["rung", "what it changes"],
            [[escape(rung.title), escape(rung.meaning)] for rung in results.rungs],
            "words",
        )
    )


def _where(results: Results) -> str:
    """What the runs were trained on, unless it was a CPU in float32."""
    precision = results.plan.dtype
    on = f", on one {escape(results.card)}" if results.card is not None else ""
    return f"{on}, in {precision}" if on or precision != Precision.FLOAT32 else ""
