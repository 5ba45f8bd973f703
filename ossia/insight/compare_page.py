"""A comparison as one page of HTML that fetches and runs nothing, and as files of SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from ossia.insight import diagrams, drawing, page
from ossia.insight.compare import (
    TRAINING_TOKENS,
    UTILIZATION,
    Comparison,
    Group,
)
from ossia.insight.diagrams.columns import COLUMN
from ossia.insight.lineage import Finding
from ossia.insight.measured import HEAD, Point
from ossia.insight.units import amount, whole

_STYLE = (
    f":root {{ {drawing.LIGHT} }} "
    f"@media (prefers-color-scheme: dark) {{ :root {{ {drawing.DARK} }} }}"
    + drawing.STYLE
    + """
h1 { max-width: 28em; }
nav { font-size: .9em; margin: .8em 0 0; line-height: 1.9; }
nav a { color: var(--quiet); margin-right: 1.1em; white-space: nowrap; }
figure .wide { margin: .4em 0 .6em; }
table.words { width: 100%; }
table.words th, table.words td { min-width: 7.5em; padding-right: 14px; }
table.words td:first-child { max-width: 13em; min-width: 6.5em; }
.differs { color: var(--mark-ink); }
.cost { display: block; color: var(--quiet); font-size: .92em; }
.note a, figcaption a { color: inherit; overflow-wrap: anywhere; }
@media (max-width: 480px) { table.words td:first-child { min-width: 5.6em; } }
"""
)


def style(models: int) -> str:
    """The CSS of a page whose drawings have so many columns."""
    return _STYLE + f"body {{ max-width: {max(900, round(models * COLUMN * 1.12) + 32)}px; }}"


def pictures(comparison: Comparison) -> dict[str, str]:
    """Every diagram of a comparison, by its name, as elements of a page."""
    models, setting = comparison.models, comparison.setting
    found = {
        "blocks": diagrams.blocks(models),
        "shape": diagrams.shape(models),
        "experts": diagrams.experts(models),
        "attention": diagrams.attention(models),
        "parameters": diagrams.parameters(models),
        "read": diagrams.read(models, setting.context),
        "compute": diagrams.context(models, "compute"),
        "cache": diagrams.cache(models),
    }
    for i, hardware in enumerate(setting.hardware):
        name = f"bounds-{i + 1}"
        found[name] = diagrams.bounds(models, hardware, setting.context, name)
    return found


def files(comparison: Comparison) -> dict[str, str]:
    """Every diagram as a file of its own, by the file's name."""
    return {
        f"{name}.svg": drawing.standalone(drawn) for name, drawn in pictures(comparison).items()
    }


def render(
    comparison: Comparison,
    lineage: Sequence[Finding],
    measured: Sequence[Point],
    command: str,
) -> str:
    """The page. command: what wrote it."""
    drawn = pictures(comparison)
    sections = [
        ("Block by block", _blocks(drawn)),
        ("Choice by choice", _lineage(comparison, lineage)),
        ("Width and depth", _shape(drawn)),
        ("Experts", _experts(drawn)),
        ("Attention", _attention(drawn)),
        ("Parameters", _parameters(comparison, drawn)),
        ("Cost of a token", _cost(comparison, drawn)),
        ("Memory", _memory(comparison, drawn)),
        ("Speed, at most", _speed(comparison, drawn, measured)),
        ("How to read this", _method(comparison, command)),
    ]
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in sections)
    parts = [f"<h1>{escape(_title(comparison))}</h1>", _summary(comparison), f"<nav>{links}</nav>"]
    for title, body in sections:
        parts.append(f'<h2 id="{_anchor(title)}">{title}</h2>{body}')
    return page.page(_title(comparison), parts, style(len(comparison.models)))


def _title(comparison: Comparison) -> str:
    return " vs ".join(model.name for model in comparison.models)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace(",", "")


def _summary(comparison: Comparison) -> str:
    rows = {row.key: row for group in comparison.groups[:4] for row in group.rows}
    sentences = []
    for i, model in enumerate(comparison.models):
        config = model.config
        total, active = rows["total"].values[i], rows["active"].values[i]
        sentences.append(
            f"<b>{escape(model.name)}</b>: {amount(total)} parameters, {amount(active)} active per "
            f"token; {len(config.layers)} layers, {whole(config.hidden_size)} wide; "
            f"{rows['read'].cells[i]} of weights read per token."
        )
    return f"<p>{'<br>'.join(sentences)}</p>"


def _figure(drawn: dict[str, str], name: str, caption: str) -> str:
    return page.figure(f'<div class="wide" tabindex="0">{drawn[name]}</div>', caption)


def _blocks(drawn: dict[str, str]) -> str:
    return _figure(
        drawn, "blocks", "One layer of each model, with what stands before and after all layers."
    )


def _lineage(comparison: Comparison, lineage: Sequence[Finding]) -> str:
    effects = any(finding.effect for finding in lineage)
    head = ["", *(model.name for model in comparison.models)]
    head += ["effect on the ladder"] if effects else []
    rows = []
    for finding in lineage:
        kind = ' class="differs"' if finding.differs else ""
        cells = [
            f'<span{kind}>{escape(fact)}</span><span class="cost">{escape(cost)}</span>'
            for fact, cost in zip(finding.facts, finding.costs, strict=True)
        ]
        effect = [escape(finding.effect or "not measured")] if effects else []
        rows.append([escape(finding.title), *cells, *effect])
    return page.table(head, rows, "words") + page.note(
        "Below each fact its cost, counted from the config. The effect is the change in held-out "
        "loss when <code>ossia ablate</code> makes that one change in a model of half a million "
        "parameters: mean of the seeds ± half of the 95 % confidence interval. It says what the "
        "change did there, not what it does in these models."
        if effects
        else "Below each fact its cost, counted from the config. <code>--ladder FOLDER</code> adds "
        "the effects that <code>ossia ablate</code> measured."
    )


def _shape(drawn: dict[str, str]) -> str:
    return _figure(
        drawn,
        "shape",
        "Each stripe is a layer, as wide as the model's hidden size. All models share one scale "
        "for width and one for depth.",
    )


def _experts(drawn: dict[str, str]) -> str:
    return _figure(
        drawn,
        "experts",
        "The feed-forward network of one layer. Each square is an expert, or the one dense "
        "network; its area is its number of parameters, on one scale for all models. Filled: what "
        "one token uses. Which experts those are differs from token to token.",
    )


def _attention(drawn: dict[str, str]) -> str:
    return _figure(
        drawn,
        "attention",
        "Above, what each query sees in each kind of layer, windows to scale; a sink is a learned "
        "logit that takes its share of every softmax. Below, the query heads, each above the head "
        "of keys and values that it shares with its group.",
    )


def _parameters(comparison: Comparison, drawn: dict[str, str]) -> str:
    return (
        _figure(
            drawn,
            "parameters",
            "Areas are parameters, on one scale for all models. Filled: those that one token uses.",
        )
        + _table(comparison, "Parameters")
        + page.note(
            "Active parameters take part in the arithmetic of one token: all but lookup tables and "
            "the experts that are not chosen. A tied embedding counts once, as the unembedding."
        )
    )


def _cost(comparison: Comparison, drawn: dict[str, str]) -> str:
    return (
        _figure(
            drawn,
            "read",
            "Bytes read to decode one token of one sequence, in the checkpoint's precision, on one "
            "scale for all models.",
        )
        + _table(comparison, "Compute")
        + _figure(
            drawn,
            "compute",
            "FLOPs of one token by its position. The rise is the attention scores: a layer with a "
            "window stops rising at its window. Each line ends at the model's context.",
        )
    )


def _memory(comparison: Comparison, drawn: dict[str, str]) -> str:
    return (
        _table(comparison, "Memory")
        + page.note(
            "To run: weights, keys and values. LoRA: updates of rank 16 of all matrices of "
            "attention, MLPs and experts, with gradients and AdamW's moments in float32; adapted "
            "matrices keep their format, all else is in float32. To train: 16 bytes a parameter, "
            "for weights, gradients and moments in float32. Activations come on top."
        )
        + _figure(
            drawn,
            "cache",
            "Keys and values of one text by its length, in the checkpoint's precision. Each line "
            "ends at the model's context.",
        )
    )


def _speed(comparison: Comparison, drawn: dict[str, str], measured: Sequence[Point]) -> str:
    parts = []
    bounds = [group for group in comparison.groups if group.hardware is not None]
    for i, group in enumerate(bounds):
        assert group.hardware is not None
        parts.append(f"<h3>{escape(group.hardware.name)}</h3>")
        parts.append(_rows(comparison, group))
        links = ", ".join(_source(source) for source in group.hardware.sources)
        parts.append(page.note(f"{escape(group.note)}. Source: {links}."))
        parts.append(
            _figure(
                drawn,
                f"bounds-{i + 1}",
                f"Texts of {whole(comparison.setting.context)} tokens, all sequences together. "
                "A dot: from there on compute is the bound, not memory.",
            )
        )
    return "".join(parts) + _measured(measured)


def _source(source: str) -> str:
    if not source.startswith("https://"):
        return escape(source)
    return f'<a href="{escape(source)}">{escape(source.removeprefix("https://"))}</a>'


def _measured(measured: Sequence[Point]) -> str:
    if not measured:
        return ""
    rows = [[escape(cell) for cell in point.cells] for point in measured]
    return (
        "<h3>Measured by this project</h3>"
        + page.table(HEAD, rows)
        + page.note(
            "By <code>ossia bench cpu</code>. The bound is by the highest memory bandwidth "
            "measured in the same run. On a shared machine bandwidth varies, so a model may see "
            "more of it than the probe did."
        )
    )


def _table(comparison: Comparison, title: str) -> str:
    return _rows(comparison, next(g for g in comparison.groups if g.title == title))


def _rows(comparison: Comparison, group: Group) -> str:
    rows = [[escape(row.label), *(escape(cell) for cell in row.cells)] for row in group.rows]
    return page.table(["", *(model.name for model in comparison.models)], rows)


def _method(comparison: Comparison, command: str) -> str:
    return page.bullets(_remarks(comparison)) + f"<pre>{escape(command)}</pre>"


def _remarks(comparison: Comparison) -> Iterator[str]:
    yield (
        "Every figure is counted from the config: nothing was downloaded, loaded or run, but for "
        "what is marked as measured."
    )
    yield (
        "FLOPs are those of matrix products, a multiplication and an addition counting as two; of "
        "attention scores only visible ones count."
    )
    yield (
        "A bound is a roofline: the time to read a step's bytes at the machine's bandwidth, or to "
        "compute its products at its peak, whichever is longer. Weights are read once a step, "
        "experts by the expected number that a batch of tokens touches if each token chooses at "
        "random. No program is faster with the same bytes; real ones are slower."
    )
    yield (
        "A model that does not fit a machine is given its bound there all the same, as if the "
        "memory were larger."
    )
    yield (
        f"Training: {amount(TRAINING_TOKENS)} tokens in texts of "
        f"{whole(comparison.setting.context)}, three times the FLOPs of a forward pass, at "
        f"{100 * UTILIZATION:.0f} % of the peak in bfloat16."
    )
