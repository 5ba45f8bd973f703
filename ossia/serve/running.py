"""The streams of one request, read as one sequence of events, within its time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from ossia.api import AsyncStream, Finished
from ossia.serve.errors import ApiError, failure
from ossia.serve.metrics import Metrics
from ossia.serve.rounds import HostedResult, ReplyEvent, Rounds


class Running:
    """The streams of one HTTP request. Leaving the block takes those that run on out of the
    engine. `end` is called when it has been left, or is dropped.
    """

    def __init__(
        self,
        streams: Sequence[AsyncStream | Rounds],
        metrics: Metrics,
        seconds: float | None = None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self.streams = streams
        self.finished: dict[int, Finished] = {}
        self.timed_out = False
        self._metrics, self._seconds = metrics, seconds
        self._end = weakref.finalize(self, end)
        self._timer: asyncio.TimerHandle | None = None
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, _time_out, weakref.ref(self))

    async def events(self) -> AsyncIterator[tuple[int, ReplyEvent | Finished]]:
        """The events of all streams as they are made, each with its stream's number. Raises what
        ends a stream before its Finished.

        When the request's time is over, each stream ends with what it has, for the reason "length";
        if none has anything, ApiError is raised.
        """
        if len(self.streams) == 1:
            async for event in self.streams[0]:
                yield 0, self._noted(0, event)
                await asyncio.sleep(0)  # others have their turn, though the next may be there
            return
        arrived: asyncio.Queue[tuple[int, ReplyEvent | Finished | Exception]] = asyncio.Queue(1)
        tasks = [asyncio.create_task(_forward(n, s, arrived)) for n, s in enumerate(self.streams)]
        try:
            while len(self.finished) < len(self.streams):
                number, event = await arrived.get()
                if isinstance(event, Exception):
                    raise event
                yield number, self._noted(number, event)
                await asyncio.sleep(0)
        finally:
            for task in tasks:
                task.cancel()

    def _noted(self, number: int, event: ReplyEvent | Finished) -> ReplyEvent | Finished:
        if isinstance(event, HostedResult):
            tool = event.tool
            # A name that the model made up would be a figure of its own, kept for ever.
            self._metrics.called(tool.name if tool.offered else tool.label, event.result.is_error)
        if not isinstance(event, Finished):
            return event
        if event.reason == "interrupted" and not any(stream.outputs for stream in self.streams):
            seconds = f"{self._seconds:g} s" if self._seconds is not None else "its time"
            raise ApiError(504, f"nothing was generated within {seconds}", code="timeout")
        self._metrics.finished(event)
        if event.reason == "interrupted":
            event = replace(event, reason="length")
        self.finished[number] = event
        return event

    @property
    def ends(self) -> list[Finished]:
        """How each stream ended, in the order of the streams."""
        return [self.finished[n] for n in range(len(self.streams))]

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Running]:
        try:
            yield self
        except (asyncio.CancelledError, GeneratorExit):
            self._metrics.cancelled(len(self.streams) - len(self.finished))
            raise
        except Exception as error:
            self._metrics.failed(len(self.streams) - len(self.finished))
            raise failure(error) from error
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for stream in self.streams:
                stream.close()
            self._end()

    def time_out(self) -> None:
        """End what still runs with what there is of it."""
        self.timed_out = True
        for stream in self.streams:
            stream.interrupt()


def _time_out(running: weakref.ref[Any]) -> None:
    if (found := running()) is not None:
        found.time_out()


async def _forward(
    number: int,
    stream: AsyncStream | Rounds,
    arrived: asyncio.Queue[tuple[int, ReplyEvent | Finished | Exception]],
) -> None:
    try:
        async for event in stream:
            await arrived.put((number, event))  # which waits until this one is read
    except Exception as error:
        await arrived.put((number, error))
