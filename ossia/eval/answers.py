"""What a model makes of a question: turn after turn, with calls of tools, up to its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ossia.eval.tasks import Question
from ossia.tools import BUILT_IN, call

MOST_CALLS = 4  # of tools, for one question

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens. cached: those of the prompt that a cache had. reasoning: those of the completion that
    are reasoning; None if unknown.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int | None = 0

    def __add__(self, other: Usage) -> Usage:
        known = self.reasoning is not None and other.reasoning is not None
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            (self.reasoning or 0) + (other.reasoning or 0) if known else None,
        )


@dataclass(frozen=True)
class Call:
    """A call of a tool, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """One reply of a model. message: as it is sent back with the results of its calls."""

    message: Message
    content: str
    reasoning: str
    finish_reason: str
    usage: Usage
    calls: tuple[Call, ...] = ()
    malformed: bool = False


@dataclass(frozen=True)
class Answered:
    """The answer to a question. calls: of tools, before it. truncated: it was cut off. malformed: a
    turn broke the rules of the model's chat format. seconds: from the question to its end, with the
    wait for others.
    """

    content: str
    reasoning: str
    calls: int
    truncated: bool
    malformed: bool
    usage: Usage
    seconds: float = 0.0
    turns: tuple[Message, ...] = field(default=(), repr=False)


class Unanswered(Exception):
    """A question that a model did not answer, in words; another may be."""


class Model(Protocol):
    """A model that answers; its methods may be called in several threads at a time."""

    def turn(self, asked: Asked, messages: Sequence[Message]) -> Turn:
        """The reply to a conversation. Raises Unanswered, and OssiaError where no question can be
        answered.
        """
        ...

    def close(self) -> None:
        """End what runs, and free what it takes."""
        ...


@dataclass(frozen=True)
class Asked:
    """How a question is asked: at which effort (None is the model's own), and for which time."""

    effort: str | None = None
    repeat: int = 0
    tools: tuple[Message, ...] = ()
    date: str | None = None
    max_tokens: int | None = None


def answer(model: Model, question: Question, asked: Asked, clock: Callable[[], float]) -> Answered:
    """Ask a question and run the tools that the model calls, up to its answer."""
    start, messages = clock(), [*question.messages]
    usage, calls, malformed, reasoning = Usage(), 0, False, []
    while True:
        turn = model.turn(asked, messages)
        usage += turn.usage
        malformed |= turn.malformed
        reasoning += [turn.reasoning] if turn.reasoning else []
        messages.append(turn.message)
        calls += len(turn.calls)
        if not turn.calls or calls > MOST_CALLS:
            break
        messages += [
            {"role": "tool", "tool_call_id": one.id, "content": _result(question, one)}
            for one in turn.calls
        ]
    return Answered(
        content=turn.content,
        reasoning="\n\n".join(reasoning),
        calls=calls,
        truncated=turn.finish_reason == "length",
        malformed=malformed,
        usage=usage,
        seconds=clock() - start,
        turns=tuple(messages[len(question.messages) :]),
    )


def _result(question: Question, one: Call) -> str:
    """What a call returns: what is on file, or what one of ossia's own tools says."""
    for result in question.results:
        if result.name == one.name and _same(result.arguments, one.arguments):
            return result.result
    if one.name in {tool.name for tool in BUILT_IN}:
        return call(BUILT_IN, one.name, one.arguments)
    return "error: nothing found"


def _same(one: str, other: str) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except (ValueError, RecursionError):
        return one == other
