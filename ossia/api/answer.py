"""A request's outputs become events: text and tool calls, ending with Finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ossia import text
from ossia.api.reply import Finished, FinishReason
from ossia.engine import Failure, Output, PromptOutput, Request, TokenOutput
from ossia.text import Channel, Event, TextDelta, ToolCallStart


class UntilStop:
    """A parser whose answer ends at the first stop string; other channels pass."""

    def __init__(self, parser: text.Parser, stop: tuple[str, ...]) -> None:
        self._parser, self._strings = parser, stop
        self._stop = text.StopStrings(stop)
        self.stopped = False

    @property
    def found(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop.found

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


@dataclass(frozen=True)
class Ask:
    """A request to the engine, and how its tokens are read: by a parser that `parser` makes, up to
    a string of `stop` in the answer. It can be asked any number of times.
    """

    request: Request
    parser: Callable[[], text.Parser]
    stop: tuple[str, ...] = ()


class Clock:
    """When a request was submitted, and when its first output and its latest came."""

    __slots__ = ("first", "last", "start")

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first = self.last = 0.0

    def tick(self) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last


class Answer:
    """Reads the outputs of one request; for one thread at a time."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self.prompt: PromptOutput | None = None
        self.outputs: list[TokenOutput] = []
        self.channels: list[Channel | None] = []  # of the text that each output is part of
        self.ended = False
        self._prompt_tokens = len(ask.request.prompt)
        self._inner = ask.parser()
        self._parser = UntilStop(self._inner, ask.stop)
        self._clock = clock
        self._called_tool = False

    def read(self, output: Output) -> list[Event | Finished]:
        """The events of one output. Raises a failure's error."""
        if isinstance(output, Failure):
            self.ended = True
            raise output.error
        if isinstance(output, PromptOutput):
            self.prompt = output
            return [] if output.finish_reason is None else self.end(output.finish_reason)
        self.outputs.append(output)
        events = self._noted(self._parser.push(output.token))
        self.channels.append(self._inner.channel)
        if self._parser.stopped:
            return events + self.end("stop")
        return events if output.finish_reason is None else events + self.end(output.finish_reason)

    def end(self, reason: FinishReason) -> list[Event | Finished]:
        """What was held back, and Finished."""
        self.ended = True
        malformed = self._inner.malformed
        events = [] if self._parser.stopped else self._noted(self._parser.finish())
        if reason == "stop":  # a reply that is cut off is not whole, which is no fault of its own
            malformed = self._inner.malformed
        if reason == "length" and self._parser.stopped:
            reason = "stop"  # the stop string was in the text that the parser had held back
        if reason == "stop" and self._called_tool:
            reason = "tool_calls"
        clock = self._clock
        first, last = clock.first or time.perf_counter(), clock.last or time.perf_counter()
        read = self.outputs[0] if self.outputs else self.prompt
        finished = Finished(
            reason,
            self._prompt_tokens,
            len(self.outputs),
            cached_tokens=read.cached_tokens if read else 0,
            reasoning_tokens=self.channels.count(Channel.REASONING),
            malformed=malformed,
            stop_string=self._parser.found,
            prefill_seconds=first - clock.start,
            decode_seconds=last - first,
        )
        return [*events, finished]

    def _noted(self, events: list[Event]) -> list[Event | Finished]:
        self._called_tool |= any(isinstance(event, ToolCallStart) for event in events)
        return [*events]
