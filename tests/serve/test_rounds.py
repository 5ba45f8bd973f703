"""Replies of several rounds that are interrupted: each ends at once, with what was made by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ossia.api import LLM, AsyncStream, Finished
from ossia.tools.toolset import Caller, Function, Result
from tests.scripted import ScriptedEngine, eventually, scripted_llm
from tests.serve.conftest import CALL

pytest.importorskip("fastapi")

from ossia.serve.hosted import Hosted
from ossia.serve.rounds import HostedResult, HostedRun, Messages, Rounds
from ossia.text import Channel, TextDelta

QUESTION = [{"role": "user", "content": "?"}]
TWICE = CALL + "<|start|>assistant" + CALL.partition("<|start|>assistant")[2]
ANSWER = "<|channel|>final<|message|>Rain."


@dataclass
class Weather:
    """A toolset. hangs: its calls do not end by themselves, but call `interrupt`."""

    hangs: bool = False
    interrupt: Callable[[], None] | None = None
    label, namespace = "sky", None
    functions = (Function("weather", "Says it.", {"type": "object"}),)
    ends: list[str] = field(default_factory=list)

    def begin(self) -> Caller:
        async def call(_name: str, _arguments: str) -> Result:
            try:
                if self.hangs and self.interrupt is not None:
                    asyncio.get_running_loop().call_soon(self.interrupt)
                    await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.ends.append("cancelled")
                raise
            self.ends.append("answered")
            return Result("rain")

        return call


@dataclass
class Made:
    """What was read of a reply, up to its end."""

    events: list[Any]
    end: Finished
    began: list[Messages]  # what the rounds after the first answer

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


@pytest.fixture
def read(bytes_folder: Path) -> Iterator[Callable[..., tuple[Made, ScriptedEngine]]]:
    """read(scripts, tool, when) reads the reply, and interrupts it at the first event that `when`
    is true of.
    """
    llms: list[LLM] = []

    def start(
        scripts: list[str], tool: Weather, when: Callable[[Any], bool], full: bool = False
    ) -> tuple[Made, ScriptedEngine]:
        llm, engine = scripted_llm(bytes_folder, scripts)
        llms.append(llm)
        engine.endless = True
        return asyncio.run(_read(llm, tool, when, full)), engine

    yield start
    for llm in llms:
        llm.close()


async def _read(llm: LLM, tool: Weather, when: Callable[[Any], bool], full: bool) -> Made:
    """full: there is no room in the queue for another round."""
    offer, began = Hosted([tool]).offer((), native=True), []

    async def again(said: Messages, _used: int) -> AsyncStream | None:
        began.append(said)
        if full:
            asyncio.get_running_loop().call_soon(rounds.interrupt)
            await asyncio.sleep(600)
        return llm.start(llm.prepare([*QUESTION, *said], offer.functions))

    rounds = Rounds(llm.start(llm.prepare(QUESTION, offer.functions)), offer, again)
    tool.interrupt = rounds.interrupt
    events = []
    async for event in rounds:
        events.append(event)
        if when(event):
            asyncio.get_running_loop().call_soon(rounds.interrupt)
        await asyncio.sleep(0)  # as `Running` does: the next event may be there
    *events, end = events
    assert isinstance(end, Finished)
    return Made(events, end, began)


def never(_event: Any) -> bool:
    return False


def test_undisturbed_it_goes_on_to_the_answer(read):
    made, engine = read([CALL, ANSWER + "<|return|>"], Weather(), never)
    assert (made.text, made.end.reason) == ("Look.Rain.", "stop")
    assert made.end.prompt_tokens == sum(len(request.prompt) for request in engine.requests)


def test_in_the_last_round_it_ends_with_what_all_rounds_made(read):
    def answers(event: Any) -> bool:
        return isinstance(event, TextDelta) and event.channel is Channel.FINAL

    made, engine = read([CALL, ANSWER], Weather(), answers)
    assert made.end.reason == "interrupted"
    assert made.text.startswith("Look.R")
    assert made.end.prompt_tokens == sum(len(request.prompt) for request in engine.requests)
    assert eventually(lambda: engine.aborted == [1])


def test_a_call_that_runs_is_cancelled(read):
    tool = Weather(hangs=True)
    made, _ = read([TWICE], tool, never)
    assert (made.text, made.end.reason, made.began) == ("Look.", "interrupted", [])
    assert tool.ends == ["cancelled"]
    assert isinstance(made.events[-1], HostedRun)  # which has no result


def test_no_call_begins_afterwards(read):
    tool = Weather()
    made, engine = read([TWICE], tool, lambda event: isinstance(event, HostedResult))
    assert (made.end.reason, made.began) == ("interrupted", [])
    assert tool.ends == ["answered"]
    assert len(engine.requests) == 1


def test_a_round_that_waits_for_room_is_given_up(read):
    made, engine = read([CALL], Weather(), never, full=True)
    assert (made.end.reason, len(made.began)) == ("interrupted", 1)
    assert isinstance(made.events[-1], HostedResult)
    assert len(engine.requests) == 1
