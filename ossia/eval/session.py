"""A run from its options to its results: the plan, the models, and the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ossia.api import LLM, packaged_model
from ossia.errors import OssiaError
from ossia.eval import data_sets, tasks
from ossia.eval.answers import Model
from ossia.eval.endpoint import Endpoint, Patience, is_endpoint
from ossia.eval.local import LocalModel, check_effort
from ossia.eval.options import EvalOptions
from ossia.eval.prices import Budget, Prices
from ossia.eval.runner import Progress, Runner, Show, Work, extended, needs_judge
from ossia.eval.store import Store
from ossia.eval.tasks import Question
from ossia.options import SamplingOptions

PACKAGED = "ossia-stdlib"
PACKAGED_TASKS = "tasks.jsonl.xz"
_PACKAGED_EFFORTS = "low,medium,high"
_PACKAGED_TOKENS = 400  # of a reply, in the scores of its card

OpenLLM = Callable[[str], LLM]


class Session:
    """A run in a folder. asked: the names of the options that were typed.

    open_llm: loads a checkpoint. Raises OssiaError for options that do not fit together, or not to
    the run that is in the folder.
    """

    def __init__(
        self,
        folder: Path,
        options: EvalOptions,
        sampling: SamplingOptions,
        asked: Mapping[str, Any],
        open_llm: OpenLLM,
    ) -> None:
        self._open_llm, self._options = open_llm, options
        prices = Prices({}) if options.prices is None else Prices.read(options.prices)
        begins = not (folder / "run.sqlite").is_file()
        questions = self._questions() if begins or options.task else []
        if begins:
            options, sampling = _defaults(options, sampling, asked)
        self.store, self._new = Store(folder, create=True), begins
        try:
            given = {k: v for k, v in asdict(sampling).items() if v not in (None, ())}
            max_tokens = given.pop("max_tokens", None)
            work = Work(
                options.model,
                options.efforts,
                options.repeat,
                options.concurrency,
                max_tokens,
                options.judge,
            )
            self.work = extended(self.store, _renamed(asked, given), work)
            self._sampling = self._settled(given)
            self._check(questions, prices)
            self.store.add_questions(questions)
            if not self.store.questions():
                raise OssiaError("the run has no questions; name some with --task")
            self._save_plan(questions)
            self.budget = Budget(options.max_cost, prices, self.work.max_tokens, self.work.judge)
            self._runner = Runner(self.store, self.work, self._open, self.budget)
        except BaseException:
            self._give_up()
            raise

    @property
    def progress(self) -> Progress:
        return self._runner.progress()

    def run(self, show: Show, stopped: Callable[[], bool]) -> Progress:
        """See Runner.run. What a new run was asked for is forgotten if it fails, as for a model
        that cannot be loaded, before there is a reply to keep.
        """
        try:
            return self._runner.run(show, stopped)
        except OssiaError:
            if not self.progress.done:
                self._give_up()
            raise

    def _give_up(self) -> None:
        """Close the store, and remove it if this object made it."""
        if self._new:
            self.store.remove()
        else:
            self.store.close()

    def _questions(self) -> list[Question]:
        names, limit = self._options.task, self._options.limit
        if not names:
            return tasks.read(packaged_model() / PACKAGED_TASKS, limit)
        return [question for name in names for question in data_sets.load(name, limit)]

    def _settled(self, given: dict[str, Any]) -> dict[str, Any]:
        """How tokens are drawn, as when the run began."""
        began = self.store.plan("sampling")
        if began is None:
            return given
        if given and given != began:
            raise OssiaError(
                f"the run began with the sampling {began or 'of the models'} and keeps it; leave "
                "those options out, or give a new --out"
            )
        return began

    def _check(self, questions: list[Question], prices: Prices) -> None:
        work, options = self.work, self._options
        if needs_judge([*questions, *self.store.questions()]) and work.judge is None:
            raise OssiaError("some questions are scored by a judge; name one with --judge")
        if options.max_cost is not None:
            if work.max_tokens is None:
                raise OssiaError(
                    "--max-cost needs --max-tokens: one reply without an end could cost more"
                )
            prices.need([*work.models, *([work.judge] if work.judge else [])])
        for name in work.models:
            if is_endpoint(name):
                self._open(name).close()  # a name without its parts is refused before the first

    def _save_plan(self, questions: list[Question]) -> None:
        self.store.set_plan("sampling", self._sampling)
        self.store.set_plan("work", asdict(self.work))
        if questions:
            known = self.store.plan("sources") or {}
            self.store.set_plan("sources", known | data_sets.sources(self._options.task))

    def _open(self, name: str) -> Model:
        if is_endpoint(name):
            patience = Patience(self._options.timeout, self._options.retries)
            return Endpoint(name, self._sampling, patience)
        llm = self._open_llm(name)
        try:
            for effort in self.work.efforts:
                check_effort(llm, effort or None)
        except OssiaError:
            llm.close()
            raise
        return LocalModel(llm, self._sampling)


def _renamed(asked: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, by the names of a plan."""
    names = {"model": "models", "effort": "efforts"}
    names |= {name: name for name in ("repeat", "judge", "concurrency")}
    found = {names[key]: value for key, value in asked.items() if key in names}
    return found | {k: v for k, v in asked.items() if k in ("max_tokens",) or k in sampling}


def _defaults(
    options: EvalOptions, sampling: SamplingOptions, asked: Mapping[str, Any]
) -> tuple[EvalOptions, SamplingOptions]:
    """The packaged model over its own held-out questions, as its card was made, unless others are
    named: one at a time, so that on one kind of processor every run gives the same replies.
    """
    if options.model and options.model != (PACKAGED,):
        return options, sampling
    options = replace(options, model=(PACKAGED,))
    if options.task:
        return options, sampling
    if options.effort is None:
        options = replace(options, effort=_PACKAGED_EFFORTS)
    if "concurrency" not in asked:
        options = replace(options, concurrency=1)
    if sampling.max_tokens is None:
        sampling = replace(sampling, max_tokens=_PACKAGED_TOKENS)
    return options, sampling
