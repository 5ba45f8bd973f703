"""What a run found, as frozen values that are written as JSON and drawn as a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ossia.eval.statistics import Interval
from ossia.system import records


@dataclass(frozen=True)
class Share:
    """The mean points of some questions, each from 0 to 1 (the share of its replies that are
    right), with Wilson's interval over the questions.
    """

    questions: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class System:
    """A model at an effort ('' is its own), over the questions that it answered.

    name: short, for tables. pass_at: by k, the chance that one of k replies is right. majority:
    the share of questions whose most common answer is right; None where answers cannot be compared.
    tokens: means of a reply; reasoning_tokens is None where an endpoint does not say. seconds: mean
    of a reply, with others at the same time. cost: US dollars in all; None if a price is unknown.
    no_answer: replies in which the scorer found none. overlapping: accuracy on questions that occur
    in the training text, and clean on the others.
    """

    name: str
    model: str
    effort: str
    replies: int
    overall: Share
    by_task: dict[str, Share]
    pass_at: dict[int, float]
    majority: float | None
    tokens: float
    reasoning_tokens: float | None
    calls: float
    seconds: float
    cost: float | None
    malformed: int
    truncated: int
    no_answer: int
    overlapping: Share | None = None
    clean: Share | None = None


@dataclass(frozen=True)
class Pair:
    """Two systems on the questions that both answered, by their names.

    difference: other minus one, in points. interval: by the bootstrap over questions. p: of
    McNemar's exact test where both gave one reply to each question, else None.
    """

    one: str
    other: str
    questions: int
    difference: float
    interval: Interval
    only_one: int
    only_other: int
    p: float | None

    @property
    def differs(self) -> bool:
        """Whether the difference is more than noise."""
        return self.p < 0.05 if self.p is not None else not self.interval.holds(0.0)


@dataclass(frozen=True)
class Said:
    """A system's first reply to a question: the answer that was found, or its text."""

    system: str
    right: bool
    answer: str
    note: str = ""


@dataclass(frozen=True)
class Disagreement:
    """A question that some systems answer and others do not."""

    question: str
    task: str
    text: str
    answers: tuple[str, ...]
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Overlap:
    """A question whose word n-grams occur in the training text: the share of them that do."""

    question: str
    share: float


@dataclass(frozen=True)
class Contamination:
    """Questions that occur in a training text. checked: those long enough to tell."""

    text: str
    n: int
    checked: int
    found: tuple[Overlap, ...]


@dataclass(frozen=True)
class Published:
    """A figure that somebody else states, in percent; never one that was measured here."""

    data_set: str
    model: str
    effort: str
    percent: float
    source: str


@dataclass(frozen=True)
class Results:
    """versions: of what ran. sampling: what the run set; a model's own is not repeated. sources:
    where the prompts of known data sets are stated.
    """

    versions: dict[str, str]
    tasks: dict[str, int]
    repeat: int
    max_tokens: int | None
    sampling: dict[str, str]
    judge: str | None
    sources: dict[str, str]
    systems: tuple[System, ...]
    pairs: tuple[Pair, ...]
    disagreements: tuple[Disagreement, ...]
    published: tuple[Published, ...]
    unasked: int
    contamination: Contamination | None = None

    def to_json(self) -> Any:
        """For json.dumps."""
        return records.to_json(self)
