"""One LLM behind the server: asks are prepared away from the event loop, started together, and
taken out of the engine when nobody waits for them any more.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from ossia.api import LLM, Ask, AsyncStream, Watch
from ossia.engine.driver import QueueFull
from ossia.errors import Busy, OssiaError
from ossia.serve.errors import ApiError, refusal
from ossia.serve.hosted import Hosted, Offer
from ossia.serve.limits import Permits
from ossia.serve.metrics import Metrics
from ossia.serve.rounds import Dialogue, Messages, Rounds
from ossia.serve.running import Running
from ossia.text import TooLong

T = TypeVar("T")

# Each has keys and values of its own, beside those of the engine, which waits for its passes.
_MOST_WATCHES = 4
_RETRY_SECONDS = 0.05  # between looks whether the queue has room


class Service:
    """name: what clients call the model. max_prompt: the most tokens of a prompt, None for what the
    model's context holds. timeout: the seconds that a request may take. max_per_key: the most
    requests of one key that run at a time. hosted: the tools that the server runs. tasks: what runs
    without a connection that waits for it.
    """

    def __init__(
        self,
        llm: LLM,
        name: str,
        *,
        max_prompt: int | None = None,
        timeout: float | None = None,
        max_per_key: int | None = None,
        hosted: Hosted = Hosted(),
    ) -> None:
        self.llm, self.name, self.max_prompt, self.timeout = llm, name, max_prompt, timeout
        self.hosted = hosted
        self._permits = Permits(max_per_key)
        self.created = int(time.time())
        self.metrics = Metrics(llm)
        self.tasks: set[asyncio.Task[Any]] = set()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def check_model(self, name: str) -> None:
        """Raise ApiError unless it is this model's name."""
        if name != self.name:
            raise ApiError(
                404,
                f"The model '{name}' does not exist; this server has '{self.name}'.",
                param="model",
                code="model_not_found",
            )

    async def prepare(self, make: Callable[[], Ask], parameters: Sequence[str]) -> Ask:
        """What `make` makes, in a thread of its own. Raises ApiError for an OssiaError, which may
        name one of the request's `parameters`, and for too long a prompt.
        """
        self._permits.check()  # before the work, not only after it
        stats = self.llm.stats()
        if stats.unfinished >= stats.max_queue:
            raise refusal(QueueFull(f"{stats.max_queue} requests are unfinished"), parameters)
        try:
            ask = await asyncio.to_thread(make)
        except OssiaError as error:
            raise refusal(error, parameters) from error
        self.check_length(len(ask.request.prompt))
        return ask

    async def open(
        self, make: Callable[[], Dialogue], parameters: Sequence[str]
    ) -> tuple[Dialogue, Ask]:
        """The dialogue that `make` makes, and what it asks first; as `prepare`."""
        made: list[Dialogue] = []

        def first() -> Ask:
            made.append(dialogue := make())
            return dialogue.make(dialogue.messages, 0)

        ask = await self.prepare(first, parameters)
        return made[0], ask

    async def watch(self, ask: Ask) -> Watch:
        """What sees the reply to an ask from within; to be closed. Raises ApiError if nothing can,
        and while there are too many.
        """
        try:
            if sum(not watch.closed for watch in self._watches) >= _MOST_WATCHES:
                raise Busy(f"xray is made of {_MOST_WATCHES} replies, as many as at a time")
            watch = self.llm.watch()
            self._watches.add(watch)
            try:
                await watch.begin(ask.request.prompt)
            except BaseException:
                watch.close()  # what the error holds on to may live on for long
                raise
        except OssiaError as error:
            raise refusal(error, ("xray",)) from error
        return watch

    def check_length(self, tokens: int) -> None:
        """Raise ApiError for a prompt of more tokens than the server takes."""
        if self.max_prompt is not None and tokens > self.max_prompt:
            raise ApiError(
                400,
                f"the prompt has {tokens:,} tokens, and this server takes {self.max_prompt:,}",
                code="context_length_exceeded",
            )

    def longest_prompt(self, reply: int | None) -> int:
        """The most tokens of a prompt that leaves room for a reply of so many, if that is at most
        half of the context; for a quarter of the context if None.
        """
        context = self.max_length
        room = context // 4 if reply is None else min(reply, context // 2)
        return min(context - room, self.max_prompt or context)

    @property
    def max_length(self) -> int:
        """The most tokens of a text, prompt and answer: of the model's context, those that the
        cache can hold.
        """
        about = self.llm.about
        return about.max_length if about else self.llm.config.context_length

    def offer(self, tools: Sequence[Mapping[str, Any]], most_calls: int | None = None) -> Offer:
        """The tools of the server's that the model is offered beside the client's functions, which
        are given in Chat Completions' form. most_calls: what the client allows.
        """
        taken = {tool["function"]["name"] for tool in tools}
        return self.hosted.offer(taken, self.llm.chat_format.name == "harmony", most_calls)

    def converse(
        self, dialogue: Dialogue, ask: Ask, choices: int, parameters: Sequence[str]
    ) -> Running:
        """As `start`, of replies in which the server's tools are called. ask: what `dialogue` makes
        of its messages.
        """
        running = self.start([ask], choices, parameters)
        if dialogue.offer.tools:
            running.streams = [
                Rounds(stream, dialogue.offer, partial(self._again, dialogue, n))
                for n, stream in enumerate(running.streams)
                if isinstance(stream, AsyncStream)
            ]
        return running

    async def _again(
        self, dialogue: Dialogue, choice: int, said: Messages, used: int
    ) -> AsyncStream | None:
        """The next round of a reply; None if there is no room for it."""
        if dialogue.most_tokens is not None and used >= dialogue.most_tokens:
            return None
        try:
            ask = await asyncio.to_thread(dialogue.make, [*dialogue.messages, *said], used)
        except TooLong:
            return None
        if len(ask.request.prompt) >= min(self.max_length, self.max_prompt or self.max_length):
            return None
        while True:
            try:
                return self.llm.start(_choice(ask, choice))
            except QueueFull:  # the client was admitted: it waits
                await asyncio.sleep(_RETRY_SECONDS)

    def start(self, asks: Sequence[Ask], choices: int, parameters: Sequence[str]) -> Running:
        """Queue `choices` answers to each of the asks, all or none. Raises ApiError."""
        end = self._permits.take()
        streams: list[AsyncStream] = []
        try:
            for ask in asks:
                streams += [self.llm.start(_choice(ask, n)) for n in range(choices)]
        except OssiaError as error:
            for stream in streams:
                stream.close()
            end()
            raise refusal(error, parameters) from error
        return Running(streams, self.metrics, self.timeout, end)


def _choice(ask: Ask, n: int) -> Ask:
    """The ask for choice `n`: a seed gives each choice numbers of its own."""
    sampling = ask.request.sampling
    if not n or sampling.seed is None:
        return ask
    seed = sampling.seed + n if sampling.seed + n < 2**63 else sampling.seed - n
    return replace(ask, request=replace(ask.request, sampling=replace(sampling, seed=seed)))


class Disconnected(Exception):
    """The client hung up before its answer was there."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client hangs up; then raises Disconnected."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
