"""Models beside each other on the same questions, and questions that a model may have read."""

from __future__ import annotations

from html import escape

from ossia.errors import shortened
from ossia.eval.report.cells import signed, with_interval
from ossia.eval.results import Disagreement, Pair, Results
from ossia.insight import page
from ossia.insight.svg import number

_MOST_DISAGREEMENTS = 60


def pairs(results: Results) -> str:
    """Pairs of systems on the same questions; nothing without one."""
    if not results.pairs:
        return ""
    once = any(pair.p is not None for pair in results.pairs)
    rows = [
        [
            f"{escape(pair.other)}<br>against {escape(pair.one)}",
            _marked(pair),
            f"{signed(pair.interval.low)} to {signed(pair.interval.high)}",
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
    return f'<span class="{kind}">{signed(pair.difference)}</span>'


def disagreements(results: Results) -> str:
    """Questions that some systems answer and others do not, with the answers."""
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


def contamination(results: Results) -> str:
    """Questions that occur in the training text; nothing where none was given."""
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
        [escape(s.name), with_interval(s.overlapping), with_interval(s.clean)]
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
