"""The page of an x-ray: one HTML file, of one text or of two side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import torch

from ossia.insight import page, svg
from ossia.insight.svg import Heading, Line
from ossia.insight.xray.attention import Look
from ossia.insight.xray.effects import Difference
from ossia.insight.xray.packed import packed
from ossia.insight.xray.subject import Subject, clamp_shares, massive
from ossia.insight.xray.trace import Trace

_BYTES = 3_600_000  # of the data of all that a page shows
_SCRIPTS = ("core", "text", "attention", "experts", "lens", "main")
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def render(subjects: Sequence[Subject], between: Difference | None = None) -> str:
    """The whole page of one x-ray, or of two that are compared. between: the difference of the
    second's predictions from the first's, if both are of the same text.
    """
    web = Path(__file__).parent / "web"
    script = "\n".join(web.joinpath(f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    data = {"traces": [packed(subject, _BYTES // len(subjects)) for subject in subjects]}
    parts = [
        _head(subjects),
        _tiles(subjects[0].trace) if len(subjects) == 1 else _compared(subjects, between),
        _section("text", "The text", _TEXT),
        _section("attention", "Attention", _ATTENTION),
        _section("experts", "Experts", _EXPERTS, _touched(subjects)),
        _section("lens", "Logit lens", _LENS, _lens(subjects)),
        _stream(subjects),
        _clamp(subjects),
        _effects(subjects),
        '<p class="made">Made by <code>ossia xray</code>. The page holds all of its data and asks '
        "no server for anything.</p>"
        "<noscript><p>Without JavaScript only the plots by layer are shown.</p></noscript>",
        f'<script type="application/json" id="data">{_embedded(data)}</script>',
    ]
    title = "X-ray: " + " against ".join(subject.name for subject in subjects)
    return page.page(title, parts, web.joinpath("style.css").read_text("utf-8"), script)


_TEXT = (
    "Each token in the colour of what the model makes of it. Point at one for what the model "
    "expected there, what its layers looked at and what it expects next; click to hold it, and "
    "walk with the arrow keys."
)
_ATTENTION = "Where the attention of each head goes, as the mean over all tokens of the text."
_EXPERTS = (
    "A router picks a few experts for each token in each layer. A balanced router gives every "
    "expert the same load; a text of one kind seldom does."
)
_LENS = (
    "The residual stream after each layer, read out as if it were the last: what the model would "
    "predict there, and how early its final choice comes first."
)


def _section(id: str, title: str, lead: str, after: str = "") -> str:
    return (
        f'<h2>{title}</h2><p class="lead">{escape(lead)}</p><section id="{id}"></section>{after}'
        if id != "experts" or after
        else ""
    )


def _head(subjects: Sequence[Subject]) -> str:
    names = " <small>against</small> ".join(escape(subject.name) for subject in subjects)
    about = "".join(
        f"<details class='about'><summary>{escape(subject.name)}</summary>"
        + page.table(["", ""], [[*map(escape, line)] for line in subject.about], "words")
        + "</details>"
        for subject in subjects
        if subject.about
    )
    return f"<h1><small>X-ray</small>{names}</h1>{about}"


# --- The figures at the top


def _figures(trace: Trace) -> list[tuple[str, str]]:
    """What each figure is, and its value."""
    mass = trace.token_mass.nanmean((0, 1)).tolist()
    first = mass[Look.SINK] + mass[Look.FIRST]
    likeliest = float((trace.next_rank[:-1] == 1).float().mean()) if len(trace.tokens) > 1 else 0.0
    found = [
        ("tokens", f"{len(trace.tokens):,}"),
        ("nats per token", _plain(trace.loss)),
        ("perplexity", _plain(math.exp(min(trace.loss, 700)))),
        ("tokens that were the likeliest", _percent(likeliest)),
        ("attention on sinks and the first token", _percent(first)),
        (f"attention {trace.near} tokens back or further", _percent(mass[Look.FAR])),
    ]
    if trace.num_experts:
        busy = trace.load.sum(1) > 0
        share = float((trace.load[busy] > 0).float().mean())
        found.append(("of a layer's experts touched", _percent(share)))
    if len(trace.lens_positions):
        layer = float(trace.decided.float().mean())
        layers = len(trace.attention_norm)
        found.append((f"of {layers} layers until the choice comes first", f"{layer:.1f}"))
    return found


def _tiles(trace: Trace) -> str:
    tiles = (f"<div><b>{value}</b><span>{name}</span></div>" for name, value in _figures(trace))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _compared(subjects: Sequence[Subject], between: Difference | None) -> str:
    """The figures of both; those that differ stand out."""
    tables = [dict(_figures(subject.trace)) for subject in subjects]
    rows = []
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        values = [table.get(name, "none") for table in tables]
        second = values[1] if values[0] == values[1] else f'<b class="worse">{values[1]}</b>'
        rows.append([escape(name), values[0], second])
    names = [f"{side}: {subject.name}" for side, subject in zip("AB", subjects, strict=True)]
    parts = [page.table(["", *names], rows)]
    if between is not None:
        agree = _percent(float(between.agrees.float().mean()))
        parts.append(
            page.note(
                f"B's predictions are {_plain(float(between.kl.mean()))} nats from A's (mean "
                f"Kullback-Leibler divergence over the tokens); both find the same token likeliest "
                f"at {agree} of them; their logits differ by up to "
                f"{_plain(float(between.largest.max()))}."
            )
        )
    return "".join(parts)


# --- Plots by layer


def _by_layer(
    subjects: Sequence[Subject],
    name: str,
    title: str,
    axis: str,
    values: Callable[[Trace], object],
    across: str = "layer",
) -> str:
    """A plot with a line for each x-ray. values: float32 (layers,) of a trace."""
    series = []
    for side, subject in zip("AB", subjects, strict=False):
        found = torch.as_tensor(values(subject.trace)).tolist()
        points = [(float(n), float(y)) for n, y in enumerate(found) if math.isfinite(y)]
        if points:
            series.append(Line(side if len(subjects) > 1 else "", points))
    if not series:
        return ""
    said = "; ".join(f"{s.name} {_plain(s.points[-1][1])} at the last" for s in series)
    plot = svg.lines(Heading(name, title, said), series, (across, axis), zero=True, height=230)
    return page.figure(plot, title)


def _lens(subjects: Sequence[Subject]) -> str:
    plots = [
        _by_layer(
            subjects,
            "kl",
            "How far each layer's prediction is from the model's own: mean divergence",
            "nats",
            lambda trace: trace.lens_kl.mean(1) if trace.lens_kl.numel() else [],
            "layers read",
        ),
        _by_layer(
            subjects,
            "first",
            "The share of positions at which a layer ranks the model's choice first",
            "share",
            lambda trace: (trace.lens_rank == 1).float().mean(1) if trace.lens_rank.numel() else [],
            "layers read",
        ),
    ]
    note = "".join(
        page.note(
            f"The lens is at {len(s.trace.lens_positions):,} of the {len(s.trace.tokens):,} tokens "
            "of the text, spread evenly."
        )
        for s in subjects[:1]
        if len(s.trace.lens_positions) < len(s.trace.tokens)
    )
    return f'{note}<div class="plots">{"".join(plots)}</div>'


def _touched(subjects: Sequence[Subject]) -> str:
    """How many experts a batch of the text touches; empty where no model has experts."""
    series = []
    for side, subject in zip("AB", subjects, strict=False):
        trace = subject.trace
        busy = trace.load.sum(1) > 0 if trace.num_experts else torch.zeros(0, dtype=torch.bool)
        if bool(busy.any()):
            sizes = [n for n in _BATCHES if n <= len(trace.tokens)]
            points = [(math.log2(n), float(trace.touched(n)[busy].mean())) for n in sizes]
            series.append(Line(side if len(subjects) > 1 else "", points))
    if not series:
        return ""
    ends = "; ".join(f"{s.name} {_percent(s.points[-1][1])}" for s in series)
    title = "The share of a layer's experts that a batch of tokens of this text touches"
    plot = svg.lines(
        Heading("touched", title, f"At the largest batch: {ends}."),
        series,
        ("tokens in the batch, as a power of two", "share"),
        zero=True,
        height=230,
    )
    return f'<div class="plots">{page.figure(plot, f"{title}: mean over the layers.")}</div>'


def _stream(subjects: Sequence[Subject]) -> str:
    plots = [
        _by_layer(
            subjects,
            "norm",
            "The norm of the residual stream after each layer, mean over the tokens",
            "norm",
            lambda trace: trace.stream_norm[1:].mean(1),
        ),
        *_writes(subjects),
    ]
    tables = []
    for subject in subjects:
        rows = [
            [
                "embedding" if row["layer"] < 0 else f"layer {row['layer']}",
                f"{row['token']:,}",
                f"<code>{escape(_marked(subject.pieces[row['token']]))}</code>",
                f"{row['dimension']:,}",
                f"{row['value']:,.1f}",
                f"{row['times_median'] or math.inf:,.0f}",
            ]
            for row in massive(subject.trace)
        ]
        head = ["largest after", "token", "", "dimension", "value", "times the token's median"]
        tables.append(_named(subject, subjects) + page.table(head, rows))
    return (
        "<h2>Residual stream</h2><p class='lead'>Every layer adds to the residual stream. A few of "
        "its numbers may tower over all others (massive activations, Sun et al. 2024), most often "
        "at the first token, where they serve as a sink for attention.</p>"
        f'<div class="plots">{"".join(plots)}</div><h3>The largest activations</h3>'
        f'<div class="plots">{"".join(f"<div>{table}</div>" for table in tables)}</div>'
    )


def _writes(subjects: Sequence[Subject]) -> list[str]:
    """What both halves of the layers add: in one plot, or in one for each of two x-rays."""
    plots = []
    for n, subject in enumerate(subjects):
        trace, side = subject.trace, f"{'AB'[n]}: " if len(subjects) > 1 else ""
        halves = (("attention", trace.attention_norm), ("feed-forward", trace.feedforward_norm))
        series = [Line(name, [*enumerate(norm.mean(1).tolist())]) for name, norm in halves]
        title = f"{side}the norm of what each half of a layer adds to it"
        said = "; ".join(f"{s.name} {_plain(s.points[-1][1])} at the last" for s in series)
        heading = Heading(f"writes{n}", title, said)
        plot = svg.lines(heading, series, ("layer", "norm"), zero=True, height=230)
        plots.append(page.figure(plot, title[0].upper() + title[1:]))
    return plots


def _clamp(subjects: Sequence[Subject]) -> str:
    parts = []
    for subject in subjects:
        layers = range(len(subject.trace.attention_norm))
        shares = [(n, clamp_shares(subject.trace, n)) for n in layers]
        rows = [
            [f"{n}", _percent(gate), _percent(up), _percent(change) if change == change else ""]
            for n, found in shares
            if found is not None
            for gate, up, change in [found]
        ]
        if not rows:
            continue
        counted, every = subject.trace.clamp_choices.sum(0).tolist()
        note = (
            ""
            if counted == every
            else (
                "Values were counted in the busiest experts of each layer, "
                f"{_percent(counted / every)} of the tokens' choices; the change is that of all."
            )
        )
        head = ["layer", "gates cut", "ups cut", "change of the output without"]
        parts.append(
            _named(subject, subjects)
            + page.table(head, rows).replace('class="wide"', 'class="wide scroll"')
            + (page.note(note) if note else "")
        )
    if not parts:
        return ""
    return (
        "<h2>What SwiGLU's clamp cuts</h2><p class='lead'>gpt-oss bounds what enters its "
        "activation: the gate from above, the other half on both sides.</p>"
        f'<div class="plots">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
    )


def _effects(subjects: Sequence[Subject]) -> str:
    parts = []
    for subject in subjects:
        rows = [
            [
                escape(name),
                _plain(float(one.kl.mean())),
                _plain(float(one.kl.max())),
                _percent(float(one.agrees.float().mean())),
                _plain(float(one.largest.max())),
            ]
            for name, one in subject.trace.differences.items()
        ]
        if rows:
            head = [
                "",
                "mean KL, nats",
                "largest KL",
                "same likeliest token",
                "largest logit change",
            ]
            parts.append(_named(subject, subjects) + page.table(head, rows))
    if not parts:
        return ""
    return (
        "<h2>Lower precision</h2><p class='lead'>What quantizing parts of the model changes in its "
        "predictions on this text, measured by another pass each.</p>" + "".join(parts)
    )


def _named(subject: Subject, subjects: Sequence[Subject]) -> str:
    if len(subjects) == 1:
        return ""
    side = "AB"[next(n for n, one in enumerate(subjects) if one is subject)]
    return f'<div class="letter">{side} <span>{escape(subject.name)}</span></div>'


def _marked(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "␣") or "∅"


def _plain(value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return (
        svg.number(value, 0 if abs(value) >= 1000 else 2) if abs(value) >= 0.1 else f"{value:.2g}"
    )


def _percent(share: float) -> str:
    value = 100 * share
    if 0 < value < 0.005:
        return "< 0.01 %"
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 1 else 2
    return f"{value:.{digits}f} %"


def _embedded(data: object) -> str:
    """JSON that no HTML parser takes for the end of its element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
