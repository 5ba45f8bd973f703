"""A reply in which the server runs calls of its own tools and the model goes on: one stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ossia.api import Ask, AsyncStream, Finished, FinishReason, Reply, ReplyBuilder, ToolCall
from ossia.engine import TokenOutput
from ossia.serve.hosted import Calls, HostedTool, Offer
from ossia.text import Channel, Event, ToolCallDelta, ToolCallStart
from ossia.tools.toolset import Result

Messages = list[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class HostedStart:
    """A call of a tool of the server's begins. index: among those of the reply."""

    index: int
    id: str
    tool: HostedTool


@dataclass(frozen=True)
class HostedDelta:
    """More of its arguments."""

    index: int
    arguments: str


@dataclass(frozen=True)
class HostedRun:
    """Its arguments are complete, and it is run."""

    index: int
    arguments: str


@dataclass(frozen=True)
class HostedResult:
    """What it gave."""

    index: int
    tool: HostedTool
    result: Result


HostedEvent = HostedStart | HostedDelta | HostedRun | HostedResult
ReplyEvent = Event | HostedEvent


@dataclass(frozen=True)
class Dialogue:
    """What a reply answers, and how it goes on. make: what is asked of the engine for these
    messages, after so many tokens of the reply. most_tokens: of the whole reply.
    """

    offer: Offer
    messages: Messages
    make: Callable[[Messages, int], Ask]
    most_tokens: int | None = None


class Rounds(AsyncIterator[ReplyEvent | Finished]):
    """The events of as many replies as the calls take, with one Finished for all. Calls of the
    client's functions end it.

    first: the reply to the request. again: the next one, to what was said since and after so many
    tokens; None if there is no room for it.
    """

    def __init__(
        self,
        first: AsyncStream,
        offer: Offer,
        again: Callable[[Messages, int], Awaitable[AsyncStream | None]],
    ) -> None:
        self._stream, self._calls, self._again = first, Calls(offer), again
        self._events = self._made()
        self._indices: dict[int, ToolCallStart | HostedStart] = {}  # of the calls of this round
        self._clients = self._hosted = 0  # calls so far
        self._interrupted = False
        self._work: asyncio.Future[Any] | None = None  # a call, or what begins the next round
        self.outputs: list[TokenOutput] = []
        self.channels: list[Channel | None] = []

    async def __anext__(self) -> ReplyEvent | Finished:
        return await anext(self._events)

    @property
    def text(self) -> tuple[Sequence[int], list[TokenOutput]]:
        """The prompt of this round, and the tokens that the model has written after it."""
        return self._stream.text

    def close(self) -> None:
        """Take what runs out of the engine."""
        self._stream.close()

    def interrupt(self) -> None:
        """End the reply with what was made so far; a call that runs is cancelled, without a result.
        In the loop's thread.
        """
        self._interrupted = True
        self._stream.interrupt()
        if self._work is not None:
            self._work.cancel()

    async def _made(self) -> AsyncGenerator[ReplyEvent | Finished]:
        said: Messages = []
        ends: list[Finished] = []
        while True:
            builder, self._indices = ReplyBuilder(), {}
            before = len(self.outputs)
            async for event in self._stream:
                builder.add(event)
                self.outputs += self._stream.outputs[len(self.outputs) - before :]
                self.channels += self._stream.channels[len(self.channels) - before :]
                if isinstance(event, Finished):
                    ends.append(event)
                else:
                    yield self._told(event)
            reply = builder.reply()
            hosted = self._own(reply)
            if reply.finish_reason != "tool_calls" or not hosted:
                yield _whole(ends, reply.finish_reason)
                return
            said.append(reply.message())
            for start, call in hosted:
                yield HostedRun(start.index, call.arguments)
                result = await self._unless_interrupted(
                    lambda start=start, call=call: self._calls.run(start.tool, call.arguments)
                )
                if result is None:
                    yield _whole(ends, "interrupted")
                    return
                said.append({"role": "tool", "tool_call_id": call.id, "content": result.text})
                yield HostedResult(start.index, start.tool, result)
            if len(hosted) < len(reply.tool_calls) or self._calls.exhausted:
                is_clients = len(hosted) < len(reply.tool_calls)
                yield _whole(ends, "tool_calls" if is_clients else "stop")
                return
            used = sum(end.completion_tokens for end in ends)
            stream = await self._unless_interrupted(lambda used=used: self._again(said, used))
            if stream is not None:
                self._stream = stream
            if stream is None or self._interrupted:
                self.close()
                yield _whole(ends, "interrupted" if self._interrupted else "length")
                return

    async def _unless_interrupted(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """What the work gives; None if the reply is interrupted before."""
        if self._interrupted:
            return None
        self._work = asyncio.ensure_future(work())
        try:
            return await self._work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._interrupted or (task is not None and task.cancelling()):
                raise
            return None
        finally:
            self._work = None

    def _told(self, event: Event) -> ReplyEvent:
        """The event with the index of its call in the whole reply."""
        match event:
            case ToolCallStart(index, name):
                tool = self._calls.offer.find(name)
                if tool is None:
                    start = ToolCallStart(self._clients, name)
                    self._clients += 1
                else:
                    start = HostedStart(self._hosted, f"call_{uuid.uuid4().hex[:24]}", tool)
                    self._hosted += 1
                self._indices[index] = start
                return start
            case ToolCallDelta(index, arguments):
                start = self._indices[index]
                kind = HostedDelta if isinstance(start, HostedStart) else ToolCallDelta
                return kind(start.index, arguments)
        return event

    def _own(self, reply: Reply) -> list[tuple[HostedStart, ToolCall]]:
        """The calls of the server's tools."""
        pairs = zip(self._indices.values(), reply.tool_calls, strict=True)
        return [(start, call) for start, call in pairs if isinstance(start, HostedStart)]


def _whole(ends: Sequence[Finished], reason: FinishReason) -> Finished:
    """The end of a reply of several rounds: what each read and wrote counts."""
    first = ends[0]
    seconds = sum(end.prefill_seconds + end.decode_seconds for end in ends)
    return Finished(
        reason,
        sum(end.prompt_tokens for end in ends),
        sum(end.completion_tokens for end in ends),
        cached_tokens=sum(end.cached_tokens for end in ends),
        reasoning_tokens=sum(end.reasoning_tokens for end in ends),
        malformed=any(end.malformed for end in ends),
        stop_string=ends[-1].stop_string,
        prefill_seconds=first.prefill_seconds,
        decode_seconds=seconds - first.prefill_seconds,
    )
