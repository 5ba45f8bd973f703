"""Events as they are made, for a thread or for asyncio: queues that the engine's thread fills."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ossia.api.answer import Answer, Ask, Clock
from ossia.api.reply import Finished
from ossia.engine import Failure
from ossia.errors import OssiaError
from ossia.text import Channel, Event

if TYPE_CHECKING:
    from ossia.engine import Output, PromptOutput, TokenOutput
    from ossia.engine.driver import Driver
    from ossia.engine.worker import Ticket


class Stream(Iterator[Event | Finished]):
    """The events of one reply as they are made; the last is `Finished`.

    A stream that is closed, left (`with`) or dropped before its end takes its request out of the
    engine. All methods may be called in any thread, and several threads may share the events.
    """

    def __init__(self, driver: Driver, ask: Ask) -> None:
        self._ticket: Ticket | None = None  # until submitted: __del__ runs all the same
        self._driver = driver
        self._reading = threading.Lock()
        self._ready: deque[Event | Finished] = deque()
        self._error: Exception | None = None
        self._closed = self._interrupted = False
        self._inbox = _Inbox()
        self._answer = Answer(ask, self._inbox.clock)
        self._ticket = driver.submit(ask.request, self._inbox.put)

    @property
    def outputs(self) -> list[TokenOutput]:
        """The tokens behind the events that were made so far."""
        return self._answer.outputs

    def __next__(self) -> Event | Finished:
        with self._reading:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._closed or self._answer.ended:
                    raise StopIteration
                self._read()
            return self._ready.popleft()

    def interrupt(self) -> None:
        """End the reply with what was read so far, as `Finished` "interrupted"; safe to call from a
        signal handler.
        """
        self._interrupted = True
        self._leave()

    def close(self) -> None:
        """End the reply without `Finished`. Events already made can still be read."""
        self._closed = True
        self._leave()

    def _leave(self) -> None:
        if self._ticket is not None and not self._answer.ended:
            self._driver.cancel(self._ticket)
            self._inbox.ring()

    def _read(self) -> None:
        """Wait for an output, and make its events."""
        assert self._ticket is not None
        if self._ticket.lost and not self._inbox.outputs:
            self._error = OssiaError("a stream cannot be read in a process forked from its own")
            return
        self._inbox.wait()
        if self._closed:
            return
        if self._interrupted:
            self._ready += self._answer.end("interrupted")
        elif self._inbox.outputs:
            try:
                self._ready += self._answer.read(self._inbox.outputs.popleft())
            except Exception as error:
                self._error = error
            if self._error is not None or self._answer.ended:
                self._driver.cancel(self._ticket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


# Waking a reader costs the engine's thread tens of microseconds, a tenth of a small model's token.
# So a reader is woken at most once per this interval, except when the reply ends, and may find
# several outputs.
_REST_SECONDS = 0.004


class _Inbox:
    """Outputs on their way from the engine's thread to one reader; it must not hold the stream."""

    def __init__(self) -> None:
        self.outputs: deque[Output] = deque()
        self.clock = Clock()
        self._bell: SimpleQueue[None] = SimpleQueue()  # its put() is safe in signal handlers
        self._waits = False
        self._woken = 0.0

    def put(self, output: Output) -> None:
        """In the engine's thread."""
        self.clock.tick()
        self.outputs.append(output)
        if self._waits or _is_last(output):
            self.ring()

    def ring(self) -> None:
        """End the wait for an output."""
        self._bell.put(None)

    def wait(self) -> None:
        """Until there is an output, or the bell has been rung."""
        if self.outputs:
            return
        rest = self._woken + _REST_SECONDS - time.perf_counter()
        if rest > 0:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=rest)
                return
        self._waits = True
        if not self.outputs:  # nothing came in before the engine's thread could know
            self._bell.get()
        self._waits = False
        self._woken = time.perf_counter()


class AsyncStream(AsyncIterator[Event | Finished]):
    """A `Stream` for the asyncio loop that it was made in.

    Cancelling a task that waits for an event takes the request out of the engine, as do leaving
    (`async with`), `close` and dropping the stream.
    """

    def __init__(self, driver: Driver, ask: Ask) -> None:
        self._ticket: Ticket | None = None
        self._driver = driver
        self._prompt = ask.request.prompt
        clock = Clock()
        self._answer = Answer(ask, clock)
        self._ready: deque[Event | Finished] = deque()
        self._error: Exception | None = None
        self._closed = False
        self._mailbox = _Mailbox(asyncio.get_running_loop(), clock)
        self._ticket = driver.submit(ask.request, self._mailbox.put)

    @property
    def outputs(self) -> list[TokenOutput]:
        """The tokens behind the events that were made so far."""
        return self._answer.outputs

    @property
    def text(self) -> tuple[Sequence[int], list[TokenOutput]]:
        """The ids of the prompt, and `outputs`."""
        return self._prompt, self.outputs

    @property
    def prompt(self) -> PromptOutput | None:
        """What the engine said of the prompt, if it was asked to, before its first token."""
        return self._answer.prompt

    @property
    def channels(self) -> list[Channel | None]:
        """The channel of the text that each of `outputs` is part of; None for markup and calls."""
        return self._answer.channels

    async def __anext__(self) -> Event | Finished:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._closed or self._answer.ended:
                raise StopAsyncIteration
            if self._mailbox.outputs:
                self._read(self._mailbox.outputs.popleft())
            else:
                try:
                    await self._mailbox.wait()
                except asyncio.CancelledError:
                    self.close()
                    raise
        return self._ready.popleft()

    def close(self) -> None:
        """End the reply without `Finished`. Events already made can still be read."""
        self._closed = True
        if self._ticket is not None and not self._answer.ended:
            self._driver.cancel(self._ticket)
            self._mailbox.notify()

    def interrupt(self) -> None:
        """End the reply with what was made so far, as `Finished` "interrupted"; in the loop's
        thread.
        """
        for _ in range(len(self._mailbox.outputs)):  # while the engine may be adding more
            if not self._answer.ended:
                self._read(self._mailbox.outputs.popleft())
        if self._ticket is not None and not (self._closed or self._answer.ended):
            self._ready += self._answer.end("interrupted")
            self._driver.cancel(self._ticket)
            self._mailbox.notify()

    async def aclose(self) -> None:
        self.close()

    def _read(self, output: Output) -> None:
        assert self._ticket is not None
        try:
            self._ready += self._answer.read(output)
        except Exception as error:
            self._error = error
        if self._error is not None or self._answer.ended:
            self._driver.cancel(self._ticket)
            self._mailbox.notify()  # tasks that wait for events of the same stream

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Mailbox:
    """An `_Inbox` for tasks of an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.outputs: deque[Output] = deque()
        self._loop, self._clock = loop, clock
        self._arrived = asyncio.Event()
        self._notified = False  # the loop will look for outputs by itself

    def put(self, output: Output) -> None:
        """In the engine's thread. Raises RuntimeError if the loop is closed, which cancels the
        request.
        """
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._clock.tick()
        self.outputs.append(output)
        if not self._notified or _is_last(output):
            self._notified = True
            self._loop.call_soon_threadsafe(self._arrive)

    def notify(self) -> None:
        """In any thread: wake the tasks that wait."""
        with contextlib.suppress(RuntimeError):  # of a closed loop, in which nothing waits
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def wait(self) -> None:
        """Until something has happened since the last look."""
        self._arrived.clear()
        await self._arrived.wait()

    def _arrive(self) -> None:
        self._arrived.set()
        self._loop.call_later(_REST_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._notified = False  # before the look: what comes from now on notifies again
        # A reader that has not waited since it was woken will look by itself, or never again.
        if self.outputs and not self._arrived.is_set():
            self._notified = True
            self._arrive()


def _is_last(output: Output) -> bool:
    return isinstance(output, Failure) or output.finish_reason is not None


class _Member:
    """One request of a batch. Its reader is woken for each output only where a stop string may end
    the text, which the engine does not know.
    """

    def __init__(self, ask: Ask, arrivals: SimpleQueue[_Member]) -> None:
        self._clock = Clock()
        self.request, self.answer = ask.request, Answer(ask, self._clock)
        self.events: list[Event | Finished] = []
        self._outputs: deque[Output] = deque()
        self._arrivals, self._each = arrivals, bool(ask.stop)

    def deliver(self, output: Output) -> None:
        self._clock.tick()
        self._outputs.append(output)
        if self._each or _is_last(output):
            self._arrivals.put(self)

    def read(self) -> bool:
        """Make events of what has come; whether that ended the text."""
        while self._outputs and not self.answer.ended:
            self.events += self.answer.read(self._outputs.popleft())
        return self.answer.ended


def read_all(driver: Driver, asks: Sequence[Ask]) -> list[tuple[Answer, list[Event | Finished]]]:
    """The answers and the events of each, run together: those for which the driver's queue has no
    room follow as others end. Raises the error of the first that fails.
    """
    arrivals: SimpleQueue[_Member] = SimpleQueue()
    members = [_Member(ask, arrivals) for ask in asks]
    waiting = deque(members)
    running: dict[_Member, Ticket] = {}

    def begin(most: int) -> None:
        offered = [(member.request, member.deliver) for member in islice(waiting, most)]
        tickets = driver.submit_some(offered)
        if offered and not tickets and not running:
            tickets = [driver.submit(*offered[0])]  # raises QueueFull, as others fill the queue
        for ticket in tickets:
            running[waiting.popleft()] = ticket

    try:
        begin(len(members))
        room = len(running)
        while running:
            member = arrivals.get()
            if member in running and member.read():
                driver.cancel(running.pop(member))
                begin(room - len(running))
    finally:
        for ticket in running.values():
            driver.cancel(ticket)
    return [(member.answer, member.events) for member in members]
