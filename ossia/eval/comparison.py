"""Two runs over the same questions: which turned, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.errors import shortened
from ossia.eval import summary
from ossia.eval.results import Pair
from ossia.eval.store import Store
from ossia.eval.summary import Replies, points
from ossia.system import records

_MOST_SHOWN, _ROOM = 20, 80


@dataclass(frozen=True)
class Turned:
    """A question that one of two runs answers more often: its id, and the user's words."""

    id: str
    text: str


@dataclass(frozen=True)
class Compared:
    """A model at an effort in two runs: `pair.other` is the second run. lost: questions that it
    answered in the first run and no longer (or less often), won: the reverse. Questions that differ
    between the runs are left out.
    """

    pair: Pair
    lost: tuple[Turned, ...]
    won: tuple[Turned, ...]

    @property
    def is_worse(self) -> bool:
        """Whether the second run is worse by more than noise."""
        return self.pair.differs and self.pair.difference < 0

    @property
    def verdict(self) -> str:
        """The outcome in a word or two."""
        if not self.pair.differs:
            return "within the noise"
        return "worse" if self.is_worse else "better"

    def to_json(self) -> Any:
        """For json.dumps."""
        return {**records.to_json(self), "verdict": self.verdict}


def compare_runs(one: Path, other: Path) -> list[Compared]:
    """Each model and effort of both runs. Raises OssiaError for a folder without a run."""
    with Store(one) as first, Store(other) as second:
        before, after = summary.by_system(first), summary.by_system(second)
        digests = {question.id: question.digest for question in first.questions()}
        same = {q.id: q.text for q in second.questions() if digests.get(q.id) == q.digest}
    if len({model for model, _ in before}) == len({model for model, _ in after}) == 1:
        efforts = {effort: key for key in before for effort in [key[1]]}
        pairs = [(efforts[key[1]], key) for key in after if key[1] in efforts]
    else:
        pairs = [(key, key) for key in after if key in before]
    names = summary.short_names(key for _, key in pairs)
    found = [
        _compared(names[new], _only(before[old], same), _only(after[new], same), same)
        for old, new in pairs
    ]
    return [compared for compared in found if compared is not None]


def text(found: list[Compared]) -> str:
    """The comparisons in plain text."""
    return "\n\n".join(_text(compared) for compared in found)


def _text(compared: Compared) -> str:
    pair, interval = compared.pair, compared.pair.interval
    p = "" if pair.p is None else f", McNemar p = {pair.p:.3g}"
    lines = [
        f"{pair.other}: {pair.difference:+.1%} over {pair.questions} questions "
        f"(95 % interval {interval.low:+.1%} to {interval.high:+.1%}{p}): {compared.verdict}"
    ]
    for word, turned in (("lost", compared.lost), ("won", compared.won)):
        if not turned:
            continue
        lines.append(f"  {word} {len(turned)}:")
        lines += [
            f"    {q.id}  {shortened(' '.join(q.text.split()), _ROOM)}"
            for q in turned[:_MOST_SHOWN]
        ]
        if len(turned) > _MOST_SHOWN:
            lines.append(f"    and {len(turned) - _MOST_SHOWN} more")
    return "\n".join(lines)


def _only(replies: Replies, wanted: Container[str]) -> Replies:
    return {question: found for question, found in replies.items() if question in wanted}


def _compared(
    name: str, before: Replies, after: Replies, texts: Mapping[str, str]
) -> Compared | None:
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    turned = {question: points(after[question]) - points(before[question]) for question in both}
    return Compared(
        summary.pair(f"{name} before", before, name, after),
        tuple(Turned(question, texts[question]) for question in both if turned[question] < 0),
        tuple(Turned(question, texts[question]) for question in both if turned[question] > 0),
    )
