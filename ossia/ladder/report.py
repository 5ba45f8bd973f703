"""The ladder's report: one page of HTML from the results that `ossia ablate` writes beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ossia.insight import svg
from ossia.insight.svg import Interval, Line, number

_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1d2025; --quiet: #5d636c; --paper: #fbfbf9;
  --edge: #d5d5d0; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e8ea; --quiet: #a3a9b2; --paper: #16181c;
  --edge: #3a3d42; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 900px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6em; line-height: 1.2; margin: 0 0 .4em; }
h2 { font-size: 1.2em; margin: 2em 0 .4em; }
p, li { max-width: 42em; }
figure { margin: 1em 0; }
figcaption, .note { color: var(--quiet); font-size: .9em; max-width: 46em; }
pre { overflow-x: auto; padding: 10px 12px; border: 1px solid var(--edge); border-radius: 6px;
  font-size: .85em; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--edge); vertical-align: bottom; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
th { font-weight: 600; white-space: normal; }
.better, .worse { font-weight: 600; }
.unclear { color: var(--quiet); }
""".replace("LIGHT", svg.COLOURS_LIGHT).replace("DARK", svg.COLOURS_DARK)
    + svg.STYLE
)

_VERDICTS = {"better": "lower", "worse": "higher", "unclear": "not told from noise"}


def render(results: dict[str, Any]) -> str:
    """The page, whole: nothing in it is fetched or run."""
    parts = [
        _head(results),
        _findings(results),
        _quality(results),
        _lengths(results),
        _rounding(results),
        _costs(results),
        _method(results),
        _again(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>From GPT-2 to gpt-oss, rung by rung</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def findings(results: dict[str, Any]) -> list[str]:
    """What the paired differences say, a sentence for each verdict and one for the whole climb."""
    rungs = results["rungs"]
    if results["plan"]["seeds"] < 2:
        return ["One seed was trained: nothing here can be told from noise."]
    said = []
    for verdict, words in (
        ("better", "lowered the held-out loss"),
        ("worse", "raised it"),
        ("unclear", "changed it by less than the seeds can tell from noise"),
    ):
        found = [r for r in rungs[1:] if r["difference"]["verdict"] == verdict]
        if found:
            listed = "; ".join(f"{r['title']} ({_signed(r['difference'])})" for r in found)
            said.append(f"{_counted(len(found))} {words}: {listed}.")
        else:
            said.append(f"No rung {words}.")
    foot, top, climb = rungs[0], rungs[-1], results["climb"]
    said.append(
        f"From {foot['title']} to {top['title']} the mean went from "
        f"{_plain(foot['bits_per_byte']['mean'])} to {_plain(top['bits_per_byte']['mean'])} bits "
        f"per byte ({_signed(climb)}, {_VERDICTS[climb['verdict']]})."
    )
    return said


def _head(results: dict[str, Any]) -> str:
    plan, config = results["plan"], results["rungs"][0]
    return (
        "<h1>From GPT-2 to gpt-oss, rung by rung</h1>"
        f"<p>Each rung changes one choice of the model below it. Every model was trained on the "
        f"same {number(results['tokens'], 0)} tokens with {_seeds(results)}: {plan['layers']} "
        f"layers of {plan['hidden']}, {number(config['active_parameters'], 0)} active parameters, "
        f"{plan['length']} tokens a text. That is small, and shortly trained: what helps here may "
        "not help at another size, and the other way round.</p>"
        + _table(
            ["rung", "what it changes"],
            [[escape(r["title"]), escape(r["meaning"])] for r in results["rungs"]],
            "words",
        )
    )


def _findings(results: dict[str, Any]) -> str:
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(results))
    return (
        f"<h2>What the seeds can tell</h2><ul>{listed}</ul>"
        '<p class="note">Figures are differences of held-out bits per byte, mean ± half of the 95 '
        "% interval over the seeds; lower is better. Of twenty such intervals one misses by "
        "chance.</p>"
    )


def _quality(results: dict[str, Any]) -> str:
    rungs = results["rungs"]
    levels = [_interval(r["title"], r["bits_per_byte"]) for r in rungs]
    steps = [_interval(r["title"], r["difference"]) for r in rungs[1:]]
    unit, written = svg.power(results["equal_flops"])
    curves = [
        Line(r["title"], [(p["flops"] / unit, p["bits_per_byte"]) for p in r["curve"]])
        for r in (rungs[0], rungs[-1])
    ]
    budget = results["equal_flops"] / unit
    parts = [
        "<h2>Held-out loss</h2>",
        _figure(
            svg.intervals(
                "levels",
                "Bits per byte of each rung",
                _spoken(levels),
                levels,
                "held-out bits per byte (lower is better)",
            ),
            "Mean of each rung (dot), its seeds (rings) and the mean's 95 % interval (bar).",
        ),
    ]
    if steps:
        parts.append(
            _figure(
                svg.intervals(
                    "steps",
                    "Change by each rung",
                    _spoken(steps),
                    steps,
                    "change against the rung below (left of zero is better)",
                    zero=True,
                ),
                "Each rung minus the one below it, seed by seed (rings): what both owe to the "
                "seed, its batches above all, cancels. A bar across zero says nothing either way.",
            )
        )
    parts += [_loss_table(rungs), _equal_note(results)]
    parts.append(
        _figure(
            svg.lines(
                "curves",
                "Bits per byte as training goes",
                "The first and the last rung, over training operations; all rungs are compared at "
                f"{_operations(results['equal_flops'])}.",
                curves,
                (f"training operations, {written}", "held-out bits per byte"),
                marks=[(budget, "equal compute")],
            ),
            "The foot and the top of the ladder, mean of the seeds.",
        )
    )
    return "".join(parts)


def _loss_table(rungs: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            escape(r["title"]),
            _with_deviation(r["loss"]),
            _with_deviation(r["bits_per_byte"]),
            _verdict(r.get("difference")),
            _with_deviation(r["at_equal_flops"]),
            _verdict(r.get("difference_at_equal_flops")),
        ]
        for r in rungs
    ]
    head = [
        "rung",
        "loss, nats a token",
        "bits per byte",
        "against the rung below",
        "bits per byte at equal compute",
        "against the rung below",
    ]
    return _table(head, rows)


def _equal_note(results: dict[str, Any]) -> str:
    return (
        '<p class="note">± in the loss columns is the standard deviation over the seeds, in the '
        "differences half of the 95 % interval. <b>Equal compute</b> reads every rung's curve "
        f"where its training had taken {_operations(results['equal_flops'])} operations, "
        "all that the cheapest rung took. A dearer rung is so read before its end, while its "
        "learning rate has not quite fallen to zero, which flatters the cheaper one a little.</p>"
    )


def _lengths(results: dict[str, Any]) -> str:
    rungs = {r["name"]: r for r in results["rungs"]}
    names = list(rungs)
    asked = [c for c in results["comparisons"] if c["about"] == "length"]
    parts = [
        "<h2>Beyond the length of training</h2>",
        f"<p>Trained on texts of {results['plan']['length']} tokens, asked to read longer ones. "
        "Learned positions have vectors there that were never trained; YaRN is set when the model "
        "is read, without further training, to the factor of the longer text.</p>",
    ]
    for name, title, after in (
        (
            "rope",
            "RoPE against learned positions",
            [("RoPE", "as trained"), ("RoPE + YaRN", "yarn")],
        ),
        ("sinks", "Attention sinks against none", [("sinks", "as trained")]),
    ):
        if name in rungs:
            before = rungs[names[names.index(name) - 1]]
            series = [
                Line(label, _change_by_position(rungs[name], way, before)) for label, way in after
            ]
            parts.append(_position_figure(name, title, series, results))
    parts.append(_length_table(results["rungs"]))
    if asked:
        listed = "".join(f"<li>{_answer(c)}</li>" for c in asked)
        parts.append(
            "<p>Paired by seed, in bits per byte: how much more a longer text costs over one of "
            "the training length, so that what was gained there does not count.</p>"
            f"<ul>{listed}</ul>"
        )
    return "".join(parts)


def _change_by_position(
    rung: dict[str, Any], way: str, before: dict[str, Any]
) -> list[tuple[float, float]]:
    """At the middle of each stretch of positions: bits per byte beyond the rung before, as it was
    trained.
    """
    points = zip(
        rung["longer"][way]["by_position"],
        before["longer"]["as trained"]["by_position"],
        strict=True,
    )
    return [(sum(a["positions"]) / 2, a["bits_per_byte"] - b["bits_per_byte"]) for a, b in points]


def _position_figure(name: str, title: str, series: Sequence[Line], results: dict[str, Any]) -> str:
    ends = ", ".join(f"{s.name} {_plain(s.points[-1][1])}" for s in series)
    return _figure(
        svg.lines(
            name,
            f"{title}: change in bits per byte by position",
            f"At the last positions: {ends}.",
            series,
            ("position in the text, tokens", "change in held-out bits per byte"),
            marks=[(results["plan"]["length"], "trained to here")],
            zero=True,
            height=220,
        ),
        f"{title}, by position in windows four times as long as those of training: mean of the "
        "seeds, below zero is better. Both read the same tokens, so that what is easy or hard in "
        "the text cancels.",
    )


def _length_table(rungs: Sequence[dict[str, Any]]) -> str:
    head = ["bits per byte in windows of"]
    head += [f"{x['tokens']} tokens" for x in rungs[0]["longer"]["as trained"]["by_length"]]
    rows = []
    for rung in rungs:
        for way, found in rung["longer"].items():
            suffix = " + YaRN" if way == "yarn" else ""
            cells = [_with_deviation(x) for x in found["by_length"]]
            rows.append([escape(rung["title"]) + suffix, *cells])
    return _table(head, rows)


def _rounding(results: dict[str, Any]) -> str:
    packed = [r for r in results["rungs"] if "mxfp4" in r["by_format"]]
    if not packed:
        return ""
    rows = [
        [escape(r["title"]), *(_with_deviation(r["by_format"][k]) for k in ("dense", "mxfp4"))]
        for r in packed
    ]
    asked = [c for c in results["comparisons"] if c["about"] == "format"]
    listed = "".join(f"<li>{_answer(c)}</li>" for c in asked)
    return (
        "<h2>Experts in four bits</h2><p>Bits per byte with the experts as they were trained, and "
        "rounded to MXFP4 as a checkpoint holds them. The last rung saw them rounded in the last "
        "quarter of its training and is judged rounded everywhere above.</p>"
        + _table(["rung", "as trained", "rounded to MXFP4"], rows)
        + (f"<ul>{listed}</ul>" if listed else "")
    )


def _costs(results: dict[str, Any]) -> str:
    reach = results["rungs"][0]["longer"]["as trained"]["by_length"][-1]["tokens"]
    head = [
        "rung",
        "parameters",
        "active",
        "training operations a token",
        "KV bytes a token",
        f"KV bytes of {number(reach, 0)} tokens",
        "checkpoint, bytes",
    ]
    rows = [
        [
            escape(r["title"]),
            number(r["parameters"], 0),
            number(r["active_parameters"], 0),
            _operations(r["training_flops_per_token"]),
            number(r["kv_bytes_per_token"], 0),
            number(r["kv_bytes_at_reach"], 0),
            number(r["checkpoint_bytes"], 0),
        ]
        for r in results["rungs"]
    ]
    return (
        "<h2>What it costs</h2>"
        + _table(head, rows)
        + '<p class="note">Counted from the configs; keys, values and checkpoint in bfloat16, '
        "MXFP4 experts packed. A model with learned positions has a table for the longest text "
        "asked of it.</p>" + _speeds(results)
    )


def _speeds(results: dict[str, Any]) -> str:
    measured = results.get("measured")
    if measured is None:
        return "<p>Speed and memory were not measured.</p>"
    rows = []
    for rung in results["rungs"]:
        found = measured["rungs"][rung["name"]]
        kept, state = found["activation_bytes"], rung["training_state_bytes"]
        rows.append(
            [
                escape(rung["title"]),
                *(_range(found[kind]) for kind in ("training", "decoding")),
                number(state / 1e6, 1),
                number(kept / 1e6, 1),
            ]
        )
    head = [
        "rung",
        "training, tokens/s",
        "decoding, tokens/s",
        "weights, gradients, moments, MB",
        "kept for the gradient, MB",
    ]
    machine = measured["machine"]
    return _table(head, rows) + (
        f'<p class="note">{escape(str(machine["processor"]))}, {_threads(measured["threads"])}, '
        f"{escape(measured['date'])}. Rungs were measured turn about, {measured['turns']} times: "
        "the median, and the least and the most. A training step is one batch of "
        f"{results['plan']['batch_size']} x {results['plan']['length']} tokens in float32; "
        f"decoding is one sequence in bfloat16 by the {escape(measured['backend'])} backend with "
        "random weights of the rung's shapes. At this size both count calls of operations more "
        "than arithmetic or memory, and say little of large models. Dropout of attention needs all "
        "its probabilities, so that GPT-2 with it trains without the tiled kernel of the others: "
        "part of what it takes more is that. The MXFP4 rung's training is timed while it rounds."
        "</p>"
    )


def _method(results: dict[str, Any]) -> str:
    plan, text = results["plan"], results["text"]
    held_out = text["held_out"]
    size = sum(document["bytes"] for document in held_out)
    return (
        "<h2>How to read this</h2><ul>"
        f"<li>Text: {escape(plan['data'])}, {number(text['train']['tokens'], 0)} tokens of a "
        f"vocabulary of {plan['vocab_size']} to draw batches from. Held out, and never seen by "
        f"model or vocabulary: {number(size, 0)} bytes of {len(held_out)} texts, the same for all; "
        "that this text was chosen and no other is in no interval.</li>"
        "<li>A seed decides the first weights, the batches and the dropout. Rungs of a seed share "
        "their batches; their first weights are alike as far as their shapes are.</li>"
        f"<li>One recipe for all: AdamW, {plan['steps']} steps of {plan['batch_size']} x "
        f"{plan['length']} tokens, learning rate {plan['learning_rate']:g} after a warm-up over a "
        "tenth of the steps, then a cosine to zero. It was tuned for none of them, and a rung that "
        "wants another one is wronged.</li>"
        f"<li>Dropout guards against reading the same text again and again. {_passes(results)}"
        "</li>"
        "<li>Training operations are three times those of a forward pass: two for each active "
        "parameter and token, four times head_dim for each score that a query sees. Boundaries of "
        "documents within a batch are not counted.</li>"
        "<li>The chosen experts together are as large as the dense network they replace; SwiGLU's "
        "three matrices as large as GELU's two.</li></ul>"
    )


def _again(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        "<h2>Again</h2>"
        f"<pre>{escape(results['command'])}</pre>"
        f'<p class="note">With {escape(versions)} and {_threads(results["threads"])} the losses '
        "come out the same, bit for bit, on the same kind of processor; speeds do not. All figures "
        "of this page are in results.json.</p>"
    )


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "figures") -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _interval(name: str, found: dict[str, Any]) -> Interval:
    return Interval(name, found["mean"], found["half_interval"], found["by_seed"])


def _spoken(rows: Sequence[Interval]) -> str:
    return "; ".join(
        f"{r.name} {_plain(r.mean)}" + (f" plus or minus {_plain(r.half)}" if r.half else "")
        for r in rows
    )


def _answer(compared: dict[str, Any]) -> str:
    verdict = compared["verdict"]
    return (
        f'{escape(compared["question"])}: <span class="{verdict}">{_signed(compared)}</span>, '
        f"{_VERDICTS[verdict]}"
    )


def _verdict(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f'<span class="{found["verdict"]}">{_signed(found)}</span>'


def _signed(found: dict[str, Any]) -> str:
    half = found["half_interval"]
    return number(found["mean"], 4, sign=True) + ("" if half is None else f" ± {_plain(half)}")


def _operations(value: float) -> str:
    unit, written = svg.power(value)
    return f"{number(value / unit, 2)}·{written}"


def _with_deviation(found: dict[str, Any]) -> str:
    deviation = found["deviation"]
    return number(found["mean"], 3) + ("" if deviation is None else f" ± {number(deviation, 3)}")


def _plain(value: float) -> str:
    return number(value, 4)


def _range(found: dict[str, float]) -> str:
    low, high = number(found["least"], 0), number(found["most"], 0)
    return f"{number(found['median'], 0)} ({low} to {high})"


def _seeds(results: dict[str, Any]) -> str:
    return "one seed" if results["plan"]["seeds"] == 1 else f"{results['plan']['seeds']} seeds"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _counted(count: int) -> str:
    return "One rung" if count == 1 else f"{count} rungs"


def _passes(results: dict[str, Any]) -> str:
    share = results["tokens"] / results["text"]["train"]["tokens"]
    if share <= 1:
        part = number(100 * share, 0)
        return (
            f"A run reads {part} % of the text and nothing twice: it has little to guard against."
        )
    return f"A run reads the text {number(share, 1)} times."
