"""The replies of a run, summed up: systems, pairs of them, and where they disagree."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import mean

import ossia
from ossia.errors import shortened
from ossia.eval import contamination, published, statistics
from ossia.eval.results import (
    Contamination,
    Disagreement,
    Pair,
    Results,
    Said,
    Share,
    System,
)
from ossia.eval.store import Recorded, Store
from ossia.eval.tasks import Question, Scorer, tasks_of

# Scorers that find an answer which can be compared with another reply's.
_COMPARABLE = frozenset({Scorer.EXACT, Scorer.NUMBER, Scorer.CHOICE, Scorer.JSON_SCHEMA})
_MOST_TEXT = 1500  # characters of a question or an answer that are shown

# The replies of a model at an effort, by question.
Replies = Mapping[str, Sequence[Recorded]]


def summarize(store: Store, training_text: str | None = None) -> Results:
    """All figures of a run. Pairs are of efforts of one model, and of models at one effort. Raises
    OssiaError for a training text that cannot be read.
    """
    questions = {question.id: question for question in store.questions()}
    work, counts = store.plan("work"), tasks_of([*questions.values()])
    overlap = contamination.check([*questions.values()], training_text) if training_text else None
    grouped = by_system(store)
    names = short_names(grouped)
    systems = tuple(
        _system(names[key], key, replies, questions, overlap) for key, replies in grouped.items()
    )
    pairs = tuple(
        pair(names[a], grouped[a], names[b], grouped[b])
        for a, b in combinations(grouped, 2)
        if (a[0] == b[0] or a[1] == b[1]) and grouped[a].keys() & grouped[b].keys()
    )
    wanted = len(questions) * len(work["models"]) * len(work["efforts"]) * work["repeat"]
    return Results(
        versions={"ossia": ossia.__version__, "python": platform.python_version()},
        tasks=counts,
        repeat=work["repeat"],
        max_tokens=work["max_tokens"],
        sampling={key: str(value) for key, value in store.plan("sampling").items()},
        judge=work["judge"],
        sources=store.plan("sources") or {},
        systems=systems,
        pairs=pairs,
        disagreements=_disagreements(questions, names, grouped),
        published=published.about(counts),
        unasked=wanted - sum(system.replies for system in systems),
        contamination=overlap,
    )


def by_system(store: Store) -> dict[tuple[str, str], Replies]:
    """The replies that have a verdict, by model and effort in the plan's order, and by question."""
    work = store.plan("work")
    found: dict[tuple[str, str], dict[str, list[Recorded]]] = {
        (model, effort): {} for model in work["models"] for effort in work["efforts"]
    }
    for recorded in store.replies():
        key = (recorded.sample.model, recorded.sample.effort)
        if recorded.verdict is not None and key in found:
            found[key].setdefault(recorded.sample.question, []).append(recorded)
    return {key: replies for key, replies in found.items() if replies}


def short_names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A short name of each model and effort, each once."""
    names: dict[tuple[str, str], str] = {}
    for model, effort in keys:
        name = model.partition("#")[2] or model.rstrip("/").rpartition("/")[2] or model
        name = f"{shortened(name, 24)} {effort}".strip()
        same = sum(other == name or other.startswith(f"{name} (") for other in names.values())
        names[model, effort] = f"{name} ({same + 1})" if same else name
    return names


def points(replies: Sequence[Recorded]) -> float:
    """The share of a question's replies that are right."""
    return mean(_right(reply) for reply in replies)


def _right(recorded: Recorded) -> bool:
    return recorded.verdict is not None and recorded.verdict.right


def share(of: Sequence[Sequence[Recorded]]) -> Share:
    """The accuracy over some questions."""
    right = sum(points(replies) for replies in of)
    interval = statistics.wilson(right, len(of))
    return Share(len(of), right / len(of) if of else 0.0, interval)


def pair(name: str, one: Replies, other_name: str, other: Replies) -> Pair:
    """Two systems on the questions that both answered."""
    both = [question for question in one if question in other]
    differences = [points(other[q]) - points(one[q]) for q in both]
    only_one = sum(difference < 0 for difference in differences)
    only_other = sum(difference > 0 for difference in differences)
    once = all(len(one[q]) == len(other[q]) == 1 for q in both)
    return Pair(
        name,
        other_name,
        len(both),
        mean(differences),
        statistics.bootstrap(differences),
        only_one,
        only_other,
        statistics.mcnemar(only_one, only_other) if once else None,
    )


def _system(
    name: str,
    key: tuple[str, str],
    replies: Replies,
    questions: Mapping[str, Question],
    overlap: Contamination | None,
) -> System:
    every = [recorded for of_question in replies.values() for recorded in of_question]
    answered = [recorded.answered for recorded in every]
    costs = [recorded.cost for recorded in every]
    reasoning = [one.usage.reasoning for one in answered if one.usage.reasoning is not None]
    seen = {found.question for found in overlap.found} if overlap else set()

    def of(wanted: Callable[[str], bool]) -> Share:
        return share([found for question, found in replies.items() if wanted(question)])

    tasks = dict.fromkeys(questions[question].task for question in replies)
    comparable = all(questions[question].scorer in _COMPARABLE for question in replies)
    return System(
        name=name,
        model=key[0],
        effort=key[1],
        replies=len(every),
        overall=of(lambda _: True),
        by_task={t: of(lambda q, t=t: questions[q].task == t) for t in tasks},
        pass_at=_pass_at(replies),
        majority=_majority(replies) if comparable else None,
        tokens=mean(one.usage.completion for one in answered),
        reasoning_tokens=mean(reasoning) if len(reasoning) == len(every) else None,
        calls=mean(one.calls for one in answered),
        seconds=mean(one.seconds for one in answered),
        cost=sum(cost for cost in costs if cost is not None) if None not in costs else None,
        malformed=sum(one.malformed for one in answered),
        truncated=sum(one.truncated for one in answered),
        no_answer=_without_answer(replies, questions),
        overlapping=of(lambda q: q in seen) if seen else None,
        clean=of(lambda q: q not in seen) if seen else None,
    )


def _pass_at(replies: Replies) -> dict[int, float]:
    """By k: powers of two up to the fewest replies that a question has."""
    least = min(len(found) for found in replies.values())
    counts = [(len(found), sum(map(_right, found))) for found in replies.values()]
    sizes = [2**i for i in range(least.bit_length()) if 2**i <= least]
    return {k: mean(statistics.pass_at(k, n, right) for n, right in counts) for k in sizes}


def _majority(replies: Replies) -> float:
    """The share of questions whose most common answer is right."""
    return mean(
        statistics.majority([(r.verdict.answer, r.verdict.right) for r in found if r.verdict])
        for found in replies.values()
    )


def _without_answer(replies: Replies, questions: Mapping[str, Question]) -> int:
    return sum(
        questions[question].scorer in _COMPARABLE
        and recorded.verdict is not None
        and recorded.verdict.answer is None
        for question, found in replies.items()
        for recorded in found
    )


def _disagreements(
    questions: Mapping[str, Question],
    names: Mapping[tuple[str, str], str],
    grouped: Mapping[tuple[str, str], Replies],
) -> tuple[Disagreement, ...]:
    found = []
    for id, question in questions.items():
        said = [_said(names[key], replies[id]) for key, replies in grouped.items() if id in replies]
        if len({one.right for one in said}) == 2:
            text = shortened(question.text, _MOST_TEXT)
            found.append(Disagreement(id, question.task, text, question.answers, tuple(said)))
    return tuple(found)


def _said(name: str, replies: Sequence[Recorded]) -> Said:
    verdict, answered = replies[0].verdict, replies[0].answered
    assert verdict is not None
    answer = verdict.answer if verdict.answer is not None else answered.content.strip()
    return Said(name, verdict.right, shortened(answer, _MOST_TEXT), shortened(verdict.note, 200))


def table(results: Results) -> str:
    """The systems as a table of plain text."""
    head = ("", "right", "95 % interval", "questions", "tokens", "reasoning", "cost")
    rows: list[tuple[str, ...]] = [head]
    for system in results.systems:
        overall, thought = system.overall, system.reasoning_tokens
        rows.append(
            (
                system.name,
                f"{overall.accuracy:.1%}",
                f"{overall.interval.low:.1%} to {overall.interval.high:.1%}",
                str(overall.questions),
                f"{system.tokens:.0f}",
                "?" if thought is None else f"{thought:.0f}",
                "?" if system.cost is None else f"${system.cost:.2f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
