"""One event stream for every way of asking: engine outputs in, text and tool calls out, ending with
Finished.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ossia import text
from ossia.api.reply import Finished, FinishReason
from ossia.engine import Failure
from ossia.text import Channel, Event, TextDelta, ToolCallStart

if TYPE_CHECKING:
    from ossia.engine import Engine, Request, TokenOutput


class PlainText:
    """The parser of a bare continuation: every id is text, but for the stop id that ends it."""

    def __init__(self, tokenizer: text.Tokenizer, stop_ids: frozenset[int]) -> None:
        self._decoder, self._stop_ids = tokenizer.stream(), stop_ids

    def push(self, id: int) -> list[Event]:
        return [] if id in self._stop_ids else self._deltas(self._decoder.push(id))

    def finish(self) -> list[Event]:
        return self._deltas(self._decoder.finish())

    @staticmethod
    def _deltas(piece: str) -> list[Event]:
        return [TextDelta(Channel.FINAL, piece)] if piece else []


class _Answer:
    """A parser whose answer ends at the first stop string; other channels pass."""

    def __init__(self, parser: text.Parser, stop: tuple[str, ...]) -> None:
        self._parser, self._strings = parser, stop
        self._stop = text.StopStrings(stop)
        self.stopped = False

    def push(self, id: int) -> list[Event]:
        return self._until_stop(self._parser.push(id))

    def finish(self) -> list[Event]:
        events = self._until_stop(self._parser.finish())
        return events if self.stopped else events + self._held_back()

    def _until_stop(self, events: list[Event]) -> list[Event]:
        safe: list[Event] = []
        for event in events:
            if self.stopped:
                break
            if isinstance(event, TextDelta) and event.channel is Channel.FINAL:
                piece, self.stopped = self._stop.push(event.text)
                safe += [TextDelta(Channel.FINAL, piece)] if piece else []
            else:
                safe += [*self._held_back(), event]
        return safe

    def _held_back(self) -> list[Event]:
        """What might have begun a stop string, now that the answer has ended or another channel
        begun.
        """
        piece, self._stop = self._stop.finish(), text.StopStrings(self._strings)
        return [TextDelta(Channel.FINAL, piece)] if piece else []


class Pump:
    """Steps an engine for whoever waits, and hands each request's outputs to its own inbox: streams
    may interleave, and threads.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()
        self._inboxes: dict[int, deque[TokenOutput | Failure]] = {}
        self._abandoned: deque[int] = deque()

    def add(self, request: Request) -> int:
        with self._lock:
            self._abort_abandoned()
            id = self._engine.add(request)
            self._inboxes[id] = deque()
            return id

    def next(self, id: int, give_up: Callable[[], bool]) -> TokenOutput | None:
        """The next output of a request, stepping the engine until there is one; None if asked to
        give up between steps.
        """
        while not give_up():
            with self._lock:
                inbox = self._inboxes[id]
                if not inbox:
                    self._step()
                    continue
                output = inbox.popleft()
            if isinstance(output, Failure):
                raise output.error
            return output
        return None

    def _step(self) -> None:
        self._abort_abandoned()
        assert self._engine.has_work, "a request is unfinished and the engine idle"
        for output in self._engine.step():
            if (owner := self._inboxes.get(output.request_id)) is not None:
                owner.append(output)

    def remove(self, id: int, finished: bool) -> None:
        """Forget a request. Never waits, because a stream may be dropped by the garbage collector
        in the middle of a step: what cannot be aborted now is aborted before the next step.
        """
        self._inboxes.pop(id, None)
        if not finished:
            self._abandoned.append(id)
            if self._lock.acquire(blocking=False):
                try:
                    self._abort_abandoned()
                finally:
                    self._lock.release()

    def _abort_abandoned(self) -> None:
        while self._abandoned:
            self._engine.abort(self._abandoned.popleft())


class Stream(Iterator[Event | Finished]):
    """The events of one reply, made as they are asked for; the last is `Finished`.

    A stream that is closed, left (`with`) or dropped before its end gives the request's memory
    back.
    """

    def __init__(
        self, pump: Pump, request: Request, parser: text.Parser, stop: tuple[str, ...]
    ) -> None:
        self.outputs: list[TokenOutput] = []
        self._closed = True  # until the engine has accepted the request: __del__ runs all the same
        self._prompt_tokens = len(request.prompt)
        self._answer, self._pump = _Answer(parser, stop), pump
        self._called_tool = self._interrupted = False
        self._ready: deque[Event | Finished] = deque()
        self._started = self._first_token = 0.0
        self._id = pump.add(request)
        self._closed = False

    def __next__(self) -> Event | Finished:
        while not self._ready and not self._closed:
            self.advance()
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def interrupt(self) -> None:
        """End the reply before its next token, with what was made so far; safe to call from a
        signal handler or a thread.
        """
        self._interrupted = True

    def advance(self) -> bool:
        """Make one more token, its events ready for `next`; False if that was the last."""
        if self._closed:
            return False
        self._started = self._started or time.perf_counter()
        output = self._pump.next(self._id, lambda: self._interrupted)
        if output is None:
            self._end("interrupted")
            return False
        self._first_token = self._first_token or time.perf_counter()
        self.outputs.append(output)
        self._emit(self._answer.push(output.token))
        if self._answer.stopped:
            self._end("stop", engine_finished=output.finish_reason is not None)
        elif output.finish_reason is not None:
            self._end(output.finish_reason, engine_finished=True)
        return not self._closed

    def close(self) -> None:
        """Abort the request if it still runs. Events already made can still be read."""
        if not self._closed:
            self._closed = True
            self._pump.remove(self._id, finished=False)

    def _emit(self, events: list[Event]) -> None:
        self._called_tool |= any(isinstance(event, ToolCallStart) for event in events)
        self._ready += events

    def _end(self, reason: FinishReason, engine_finished: bool = False) -> None:
        self._closed = True
        self._pump.remove(self._id, finished=engine_finished)
        if not self._answer.stopped:
            self._emit(self._answer.finish())
        if reason == "length" and self._answer.stopped:
            reason = "stop"  # the stop string stood in what the parser had held back
        if reason == "stop" and self._called_tool:
            reason = "tool_calls"
        now = time.perf_counter()
        first = self._first_token or now
        self._ready.append(
            Finished(
                reason,
                self._prompt_tokens,
                len(self.outputs),
                prefill_seconds=first - self._started,
                decode_seconds=now - first,
            )
        )

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
