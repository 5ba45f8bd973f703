"""Every question to every model at every effort: several at once, each reply kept as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from ossia.errors import OssiaError, brief
from ossia.eval import answers, scoring
from ossia.eval.answers import Answered, Asked, Model, Unanswered
from ossia.eval.prices import Budget
from ossia.eval.scoring import Verdict, judge
from ossia.eval.store import Sample, Store
from ossia.eval.tasks import Question, Scorer

_LOOK_SECONDS = 0.2  # between looks at whether the run was stopped
_FAILURES = 5  # of a model's first questions, after which no other is asked


@dataclass(frozen=True)
class Work:
    """What is asked of whom. efforts: '' is the model's own. max_tokens: of each reply."""

    models: tuple[str, ...]
    efforts: tuple[str, ...]
    repeat: int
    concurrency: int
    max_tokens: int | None = None
    judge: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a run is. left_out: samples that the spending limit, or a stop, left unasked."""

    done: int
    total: int
    scored: int
    right: int
    spent: float
    failed: int
    left_out: int = 0
    problem: str = ""  # the last failure

    @property
    def accuracy(self) -> float:
        return self.right / self.scored if self.scored else 0.0


Show = Callable[[Progress], None]
Open = Callable[[str], Model]


@dataclass
class _State:
    """What the threads of a run have done; only the main thread changes it."""

    done: int
    total: int
    scored: int
    right: int
    failed: int = 0
    unanswered: int = 0  # the failures that left no reply
    problem: str = ""
    first_failures: dict[str, int] = field(default_factory=dict)  # of models that never answered


@dataclass(frozen=True)
class _Came:
    """What a thread sends: a reply, then its verdict; or a failure, before or after the reply."""

    sample: Sample
    reserved: float
    answered: Answered | None = None
    was_answered: bool = False
    verdict: Verdict | None = None
    judge_cost: float | None = None
    failure: Exception | None = None


class Runner:
    """Asks what the store has no reply to. Raises OssiaError if a model cannot answer at all."""

    def __init__(self, store: Store, work: Work, open_model: Open, budget: Budget) -> None:
        self._store, self._work, self._open, self._budget = store, work, open_model, budget
        self._questions = {question.id: question for question in store.questions()}
        self._came: SimpleQueue[_Came] = SimpleQueue()
        self._judge: Model | None = None
        self._judge_lock = Lock()
        scored, right, self._budget.spent = store.tally()
        answered = store.samples()
        self._missing = [sample for sample in self.samples() if sample not in answered]
        total = len(answered) + len(self._missing)
        self._state = _State(len(answered), total, scored, right)

    def samples(self) -> Iterator[Sample]:
        """All that there is to ask. A run that stops early has asked as much at each effort."""
        for model in self._work.models:
            for repeat in range(self._work.repeat):
                for question in self._questions:
                    for effort in self._work.efforts:
                        yield Sample(model, effort, question, repeat)

    def progress(self) -> Progress:
        state = self._state
        left = state.total - state.done - state.unanswered
        return Progress(
            state.done,
            state.total,
            state.scored,
            state.right,
            self._budget.spent,
            state.failed,
            left,
            state.problem,
        )

    def run(self, show: Show, stopped: Callable[[], bool]) -> Progress:
        """Ask until all is answered, the spending limit is near or `stopped`; how far it came."""
        try:
            self._score_the_unscored(show)
            for name in self._work.models:
                pending = deque(s for s in self._missing if s.model == name)
                if pending and not stopped():
                    with closing(self._open(name)) as model:
                        self._ask_all(model, pending, show, stopped)
        finally:
            if self._judge is not None:
                self._judge.close()
        return self.progress()

    def _ask_all(
        self, model: Model, pending: deque[Sample], show: Show, stopped: Callable[[], bool]
    ) -> None:
        """Each sample is answered in a thread of its own. Threads that are left behind by an error
        do not keep the process from ending.
        """
        running = 0
        while True:
            while pending and running < self._work.concurrency and not stopped():
                question = self._questions[pending[0].question]
                reserved = self._budget.reserve(pending[0].model, question)
                if reserved is None:
                    break
                job = (model, pending.popleft(), reserved)
                Thread(target=self._answer, args=job, daemon=True).start()
                running += 1
            if not running:
                return
            with suppress(Empty):
                running -= self._take(self._came.get(timeout=_LOOK_SECONDS))
                show(self.progress())

    def _take(self, came: _Came) -> int:
        """Keep what came; 1 if that ends a sample, else 0. Raises OssiaError for a failure that
        concerns all.
        """
        state, sample = self._state, came.sample
        if came.answered is not None:
            state.first_failures[sample.model] = -1
            cost = self._budget.prices.cost(sample.model, came.answered.usage)
            self._store.add_reply(sample, came.answered, cost)
            self._budget.settle(0.0, cost)
            state.done += 1
            return 0
        self._budget.settle(came.reserved, came.judge_cost)
        if came.verdict is not None:
            self._store.add_verdict(sample, came.verdict, came.judge_cost)
            state.scored += 1
            state.right += came.verdict.right
            return 1
        assert came.failure is not None
        state.unanswered += not came.was_answered
        self._failed(sample, came.failure)
        return 1

    def _failed(self, sample: Sample, failure: Exception) -> None:
        if not isinstance(failure, Unanswered):
            raise failure
        state = self._state
        state.failed += 1
        state.problem = f"{sample.model}, question {sample.question}: {brief(failure)}"
        if (count := state.first_failures.get(sample.model, 0)) >= 0:
            state.first_failures[sample.model] = count + 1
            if count + 1 >= _FAILURES:
                raise OssiaError(f"the first {_FAILURES} questions failed; {state.problem}")

    def _answer(self, model: Model, sample: Sample, reserved: float) -> None:
        """In a thread: a reply and its verdict."""
        question = self._questions[sample.question]
        asked = Asked(
            sample.effort or None,
            sample.repeat,
            question.tools,
            question.date,
            self._work.max_tokens,
        )
        answered = None
        try:
            answered = answers.answer(model, question, asked, time.perf_counter)
            self._came.put(_Came(sample, reserved, answered))
            verdict, cost = self._verdict(question, answered)
            self._came.put(_Came(sample, reserved, verdict=verdict, judge_cost=cost))
        except Exception as failure:
            kept = answered is not None
            self._came.put(_Came(sample, reserved, was_answered=kept, failure=failure))

    def _verdict(self, question: Question, answered: Answered) -> tuple[Verdict, float | None]:
        """The verdict on a reply, and what the judge cost; None without one."""
        costs: list[float] = []

        def ask(prompt: str) -> str:
            name = self._work.judge
            assert name is not None
            with self._judge_lock:
                self._judge = self._judge or self._open(name)
            asked = Asked(max_tokens=judge.MAX_TOKENS)
            turn = self._judge.turn(asked, [{"role": "user", "content": prompt}])
            costs.append(self._budget.prices.cost(name, turn.usage) or 0.0)
            return turn.content

        verdict = scoring.score(question, answered.content, ask)
        return verdict, sum(costs) if costs else None

    def _score_the_unscored(self, show: Show) -> None:
        """The replies of a run that was killed before their verdicts."""
        for sample, answered in self._store.unscored():
            try:
                verdict, cost = self._verdict(self._questions[sample.question], answered)
            except Unanswered as failure:  # of the judge
                self._failed(sample, failure)
                continue
            self._take(_Came(sample, 0.0, verdict=verdict, judge_cost=cost))
            show(self.progress())


def needs_judge(questions: Sequence[Question]) -> bool:
    """Whether a judge is asked about some of them."""
    return any(question.scorer is Scorer.JUDGE for question in questions)


def extended(store: Store, asked: dict[str, Any], work: Work) -> Work:
    """The work of a run that goes on: what it began with, and what is `asked` for beside it.

    Models, efforts and repeats are added to; the rest cannot change. Raises OssiaError if it would.
    """
    began = store.plan("work")
    if began is None:
        return work
    for key in ("max_tokens", "judge"):
        if key in asked and asked[key] != began[key]:
            raise OssiaError(
                f"--{key.replace('_', '-')} {asked[key]}: the run began with {began[key]}; leave "
                "it out, or give a new --out"
            )

    def more(key: str, new: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*began[key], *(new if key in asked else ())]))

    return replace(
        work,
        models=more("models", work.models),
        efforts=more("efforts", work.efforts),
        repeat=max(began["repeat"], work.repeat) if "repeat" in asked else began["repeat"],
        concurrency=work.concurrency if "concurrency" in asked else began["concurrency"],
        max_tokens=began["max_tokens"],
        judge=began["judge"],
    )
