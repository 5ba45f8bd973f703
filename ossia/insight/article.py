"""The article, from the configs: GPT-2 XL, gpt-oss and Qwen3 in three pages and an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from ossia.families import PRESETS
from ossia.insight import compare_page, diagrams, drawing, page
from ossia.insight.compare import Comparison, Setting, compare
from ossia.insight.facts import Model
from ossia.insight.lineage import findings
from ossia.insight.measured import Point
from ossia.insight.units import amount

PAIRS = (
    ("gpt2-xl", "gpt-oss-20b"),
    ("gpt-oss-20b", "qwen3-30b-a3b"),
    ("gpt-oss-120b", "qwen3-235b-a22b"),
)
_TITLE = "From GPT-2 to gpt-oss, and Qwen3 beside it"

Measured = Callable[[Sequence[Model]], Sequence[Point]]


def files(
    setting: Callable[[Sequence[Model]], Setting],
    effects: Mapping[str, str],
    measured: Measured,
    command: str,
) -> dict[str, str]:
    """The pages and their pictures, by file name.

    setting: what some models are compared at. effects: of the ladder, by rung. measured: what was
    measured of some models. command: what writes the pages.
    """
    found, links = {}, []
    for names in PAIRS:
        models = [Model(name, PRESETS[name]) for name in names]
        comparison = compare(models, setting(models))
        stem = "-vs-".join(names)
        text = compare_page.render(comparison, findings(models, effects), measured(models), command)
        found[f"{stem}.html"] = text
        for name, drawn in compare_page.files(comparison).items():
            found[f"{stem}/{name}"] = drawn
        links.append(f'<a href="{stem}.html">{escape(_sentence(comparison))}</a>')
    models = [Model(name, PRESETS[name]) for name in dict.fromkeys(n for p in PAIRS for n in p)]
    pictures = {"shape": diagrams.shape(models), "experts": diagrams.experts(models)}
    found |= {f"{name}.svg": drawing.standalone(drawn) for name, drawn in pictures.items()}
    found["index.html"] = _index(links, pictures, compare_page.style(len(models)))
    return found


def _sentence(comparison: Comparison) -> str:
    names = " vs ".join(model.name for model in comparison.models)
    total = next(row for group in comparison.groups for row in group.rows if row.key == "total")
    return f"{names}: {' and '.join(amount(value) for value in total.values)} parameters"


def _index(links: Sequence[str], pictures: Mapping[str, str], style: str) -> str:
    parts = [
        f"<h1>{_TITLE}</h1>",
        "<p>Three comparisons, each drawn and counted from the configs of its two models.</p>",
        page.bullets(links),
        "<h2>All five, width against depth</h2>",
        page.figure(
            f'<div class="wide" tabindex="0">{pictures["shape"]}</div>',
            "Each stripe is a layer, as wide as the model's hidden size, all on one scale.",
        ),
        "<h2>And their experts</h2>",
        page.figure(
            f'<div class="wide" tabindex="0">{pictures["experts"]}</div>',
            "The feed-forward network of one layer: areas are parameters, filled is what one token "
            "uses.",
        ),
    ]
    return page.page(_TITLE, parts, style)
