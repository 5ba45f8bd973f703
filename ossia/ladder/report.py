"""The report of a ladder: one HTML page, from the results that stand beside it as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from ossia.config import ExpertFormat
from ossia.insight import page, svg
from ossia.insight.svg import Heading, Interval, Line, number
from ossia.ladder.results import Comparison, Reading, Results, RungResult, Topic
from ossia.ladder.rungs import MXFP4, REACH, ROPE, SINKS, Rung
from ossia.ladder.statistics import Difference, OverSeeds, Verdict
from ossia.measure.speed import Spread
from ossia.system.files import write_bytes, write_json, writing
from ossia.train.settings import Precision

_TITLE = "From GPT-2 to gpt-oss, rung by rung"
_STYLE = """
.better, .worse { font-weight: 600; }
.unclear { color: var(--quiet); }
"""
# On a CPU; a GPU's kernel drops within its tiles.
_DROPOUT = (
    "Attention dropout needs all attention probabilities, so a model with it trains without the "
    "tiled kernel of the others, which is part of its extra time and memory. "
)
_VERDICTS = {
    Verdict.BETTER: "lower",
    Verdict.WORSE: "higher",
    Verdict.UNCLEAR: "within the noise",
}


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
        _findings(results),
        _quality(results),
        _lengths(results),
        _rounding(results),
        _costs(results),
        _speeds(results),
        _method(results),
        _reproduce(results),
    ]
    return page.page(_TITLE, parts, _STYLE)


def findings(results: Results) -> list[str]:
    """The paired differences in words: a sentence for each verdict, and one for the whole climb."""
    if results.plan.seeds < 2:
        return ["One seed was trained, so no difference can be told from noise."]
    sentences = []
    for verdict, words in (
        (Verdict.BETTER, "lowered the held-out loss"),
        (Verdict.WORSE, "raised the held-out loss"),
        (Verdict.UNCLEAR, "changed it by less than the noise between seeds"),
    ):
        found = [
            f"{rung.title} ({_signed(rung.difference)})"
            for rung in results.rungs
            if rung.difference is not None and rung.difference.verdict is verdict
        ]
        if found:
            count = "One rung" if len(found) == 1 else f"{len(found)} rungs"
            sentences.append(f"{count} {words}: {'; '.join(found)}.")
        else:
            sentences.append(f"No rung {words}.")
    foot, top = results.rungs[0], results.rungs[-1]
    sentences.append(
        f"From {foot.title} to {top.title} the mean went from {_plain(foot.bits_per_byte.mean)} to "
        f"{_plain(top.bits_per_byte.mean)} bits per byte ({_answer(results.climb)})."
    )
    return sentences


def _head(results: Results) -> str:
    plan, foot = results.plan, results.rungs[0]
    seeds = "one seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    return (
        f"<h1>{_TITLE}</h1>"
        "<p>Each rung changes one choice of the model below it. All models were trained on the "
        f"same {number(results.tokens, 0)} tokens with {seeds}: {plan.layers} layers of width "
        f"{plan.hidden}, {number(foot.costs.active_parameters, 0)} active parameters, "
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


def _findings(results: Results) -> str:
    return (
        "<h2>What stands out from the noise</h2>"
        + page.bullets(escape(sentence) for sentence in findings(results))
        + page.note(
            "Figures are differences in held-out bits per byte: mean ± half of the 95 % confidence "
            "interval over the seeds; lower is better. One in twenty such intervals misses the "
            "true value by chance."
        )
    )


def _quality(results: Results) -> str:
    rungs = results.rungs
    levels = [_interval(rung.title, rung.bits_per_byte) for rung in rungs]
    steps = [_interval(r.title, r.difference) for r in rungs if r.difference is not None]
    levels_plot = svg.intervals(
        Heading("levels", "Bits per byte of each rung", _spoken(levels)),
        levels,
        "held-out bits per byte (lower is better)",
    )
    steps_plot = svg.intervals(
        Heading("steps", "Change made by each rung", _spoken(steps)),
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
                f"{_flops(results.equal_flops)} FLOPs, the whole training of the cheapest rung. A "
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
        f"{_flops(results.equal_flops)}.",
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
            _with_deviation(rung.loss),
            _with_deviation(rung.bits_per_byte),
            _marked(rung.difference),
            _with_deviation(rung.at_equal_flops.value),
            _marked(rung.difference_at_equal_flops),
        ]
        for rung in rungs
    ]
    return page.table(head, rows)


def _lengths(results: Results) -> str:
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
            results, SINKS, "Attention sinks against none", {"sinks": Reading.AS_TRAINED}
        ),
        _length_table(results.rungs),
    ]
    if answers := _answers(results.comparisons, Topic.LENGTH):
        parts.append(
            "<p>Paired by seed, in bits per byte: the rise from windows of the training length to "
            "longer ones, so that a gain at the training length does not count.</p>" + answers
        )
    return "".join(parts)


def _position_figure(results: Results, rung: Rung, title: str, series: dict[str, Reading]) -> str:
    """What a rung changes by position; nothing if the ladder does not have it."""
    pairs = pairwise(results.rungs)
    found = next(((one, below) for below, one in pairs if one.name == rung.name), None)
    if found is None:
        return ""
    drawn = [Line(name, _change_by_position(*found, reading)) for name, reading in series.items()]
    ends = ", ".join(f"{line.name} {_plain(line.points[-1][1])}" for line in drawn)
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
            cells = [_with_deviation(window.bits_per_byte) for window in reach.by_length]
            rows.append([escape(rung.title) + suffix, *cells])
    return page.table(head, rows)


def _rounding(results: Results) -> str:
    formats = [ExpertFormat.DENSE, ExpertFormat.MXFP4]
    rows = [
        [escape(rung.title), *(_with_deviation(rung.by_format[kind]) for kind in formats)]
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
        + _answers(results.comparisons, Topic.FORMAT)
    )


def _costs(results: Results) -> str:
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
            _flops(rung.costs.training_flops_per_token),
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


def _speeds(results: Results) -> str:
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
        f"{_threads(measured.threads)}, {escape(measured.date)}. The rungs were measured in turn, "
        f"{measured.turns} times: median, lowest and highest. A training step is one batch of "
        f"{plan.batch_size} x {plan.length} tokens in {plan.dtype}; decoding is one sequence in "
        f"bfloat16 on the {escape(measured.backend)} backend, with random weights of the rung's "
        "shapes. At this size the overhead of each operation dominates both, and they say little "
        f"about large models. {_DROPOUT if results.card is None else ''}"
        f"The rung {MXFP4.title} is timed with rounding in every step."
    )


def _method(results: Results) -> str:
    plan, text = results.plan, results.text
    size = sum(document.bytes for document in text.held_out)
    return "<h2>How to read this</h2>" + page.bullets(
        [
            f"Text: {escape(plan.data)}, {number(text.train.tokens, 0)} tokens in a vocabulary of "
            f"{plan.vocab_size}, from which batches are drawn. Held out from both models and "
            f"vocabulary: {number(size, 0)} bytes in {len(text.held_out)} texts, the same for all "
            "runs. No interval covers the choice of this text.",
            "A seed decides the initial weights, the batches and the dropout. Rungs with the same "
            "seed share their batches, and their initial weights as far as their shapes agree.",
            f"One recipe for all: AdamW, {plan.steps} steps of {plan.batch_size} x {plan.length} "
            f"tokens, learning rate {plan.learning_rate:g} after a warm-up over a tenth of the "
            "steps, then a cosine to zero. It was tuned for none of the rungs, which disadvantages "
            "those that need another one.",
            f"Dropout prevents overfitting to text that is read repeatedly. {_passes(results)}",
            "Training FLOPs are three times those of a forward pass: two per weight that a "
            "token is multiplied by, four times head_dim per attention score that a query sees. "
            "Document boundaries within a batch are ignored.",
            "The chosen experts together are as large as the dense network that they replace; "
            "SwiGLU's three matrices are as large as GELU's two.",
        ]
    )


def _passes(results: Results) -> str:
    share = results.tokens / results.text.train.tokens
    if share <= 1:
        part = number(100 * share, 0)
        return f"A run reads {part} % of the text and nothing twice, so it has little to prevent."
    return f"A run reads the text {number(share, 1)} times."


def _reproduce(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    means, kind = _threads(results.threads), "processor"
    if results.card is not None:
        means, kind = escape(results.card), "GPU"
    return f"<h2>Reproduce</h2><pre>{escape(results.command)}</pre>" + page.note(
        f"With {escape(versions)} and {means} the losses are the same bit for bit on the same kind "
        f"of {kind}; speeds are not. All figures on this page are in results.json."
    )


def _interval(name: str, found: OverSeeds) -> Interval:
    return Interval(name, found.mean, found.half_interval, found.by_seed)


def _spoken(rows: Sequence[Interval]) -> str:
    return "; ".join(
        f"{r.name} {_plain(r.mean)}" + (f" plus or minus {_plain(r.half)}" if r.half else "")
        for r in rows
    )


def _answers(comparisons: Iterable[Comparison], topic: Topic) -> str:
    """The comparisons about a topic as a list; nothing if there are none."""
    items = [
        f"{escape(one.question)}: {_marked(one.answer)}, {_VERDICTS[one.answer.verdict]}"
        for one in comparisons
        if one.about is topic
    ]
    return page.bullets(items) if items else ""


def _answer(found: Difference) -> str:
    return f"{_signed(found)}, {_VERDICTS[found.verdict]}"


def _marked(found: Difference | None) -> str:
    if found is None:
        return ""
    return f'<span class="{found.verdict}">{_signed(found)}</span>'


def _signed(found: OverSeeds) -> str:
    half = found.half_interval
    return number(found.mean, 4, sign=True) + ("" if half is None else f" ± {_plain(half)}")


def _flops(value: float) -> str:
    unit, power = svg.power(value)
    return f"{number(value / unit, 2)}·{power}"


def _with_deviation(found: OverSeeds) -> str:
    deviation = found.deviation
    return number(found.mean, 3) + ("" if deviation is None else f" ± {number(deviation, 3)}")


def _plain(value: float) -> str:
    return number(value, 4)


def _trained_on(results: Results) -> str:
    """The GPU that training was measured on; everything else ran on the processor."""
    return "" if results.card is None else f"Training on {escape(results.card)}, decoding on "


def _range(found: Spread) -> str:
    low, high = number(found.least, 0), number(found.most, 0)
    return f"{number(found.median, 0)} ({low} to {high})"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
