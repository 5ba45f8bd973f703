"""What a ladder found, in sentences."""

from __future__ import annotations

from html import escape

from ossia.insight import page
from ossia.ladder.report.words import answer, plain, signed
from ossia.ladder.results import Results
from ossia.ladder.rungs import REACH
from ossia.ladder.statistics import Verdict


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
            f"{rung.title} ({signed(rung.difference)})"
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
        f"From {foot.title} to {top.title} the mean went from {plain(foot.bits_per_byte.mean)} to "
        f"{plain(top.bits_per_byte.mean)} bits per byte ({answer(results.climb)})."
    )
    return sentences + _beyond(results)


def _beyond(results: Results) -> list[str]:
    """What positions, windows and sinks do to texts beyond the training length, as trained."""
    length = results.plan.length
    start = f"rise to {REACH * length} tokens, "
    found = [
        f"{one.question.removeprefix(start)} {answer(one.answer)}"
        for one in results.comparisons
        if one.question.startswith(start) and "YaRN" not in one.question
    ]
    if not found:
        return []
    return [
        f"Rise in bits per byte from windows of {length} tokens to {REACH * length}: "
        f"{'; '.join(found)}."
    ]


def section(results: Results) -> str:
    return (
        "<h2>What stands out from the noise</h2>"
        + page.bullets(escape(sentence) for sentence in findings(results))
        + page.note(
            "Figures are differences in held-out bits per byte: mean ± half of the 95 % confidence "
            "interval over the seeds; lower is better. One in twenty such intervals misses the "
            "true value by chance."
        )
    )
