"""Replies with tagged parts, as Qwen3 writes them: <think>…</think>, <tool_call>…</tool_call>."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.text.calls import FUNCTION, CallBody, FunctionCall, JsonCall, named_head
from ossia.text.chat import ToolDescription
from ossia.text.events import Channel, Event, TextDelta
from ossia.text.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


def begins_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the prompt ends with an open <think>, as the templates of Thinking-2507 do."""
    control = {id: name for name, id in tokenizer.control.items()}
    for id in reversed(prompt):
        if id in control or tokenizer.token_bytes(id).strip():
            return control.get(id) == THINK
    return False


class TagParser:
    """Turns a reply's ids into events. Tags are control tokens; the same characters in ordinary
    tokens are text.

    Line ends around tags belong to the format, not to the text. A call's arguments stream as the
    model writes them, once its name is known. A call that is not JSON with a name, and no function
    in tags, becomes final text, tags included. A call inside unfinished reasoning ends the
    reasoning; tags that close nothing are dropped.

    `tools` are the functions that the prompt offers: their schemas give the types of parameters in
    tags. With `bare_functions` a <function=NAME> of one of them is a call also without <tool_call>
    before it, which Qwen3-Coder tends to forget.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        tools: Sequence[ToolDescription] = (),
        *,
        bare_functions: bool = False,
    ):
        self._tag = {
            tokenizer.control[tag]: tag
            for tag in (THINK, END_THINK, CALL, END_CALL)
            if tag in tokenizer.control
        }
        self._control = frozenset(tokenizer.control.values())
        self._decoder = tokenizer.stream()
        self._tools = {tool.name: tool for tool in tools}
        self._bare_functions = bare_functions and bool(tools)
        self._channel = Channel.FINAL
        self._at_start = False  # of a part: line ends there belong to the format
        self._held = ""  # line ends, which belong to the format if a tag follows, and half a tag
        self._call: _Call | None = None
        self._calls = 0
        self._is_text = False  # the latest id
        self.malformed = False
        if begins_thinking(tokenizer, prompt):
            self._begin(Channel.REASONING)

    @property
    def channel(self) -> Channel | None:
        """See Parser.channel."""
        return self._channel if self._is_text and self._call is None else None

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes."""
        tag = self._tag.get(id)
        self._is_text = tag is None and id not in self._control
        if tag is None:
            return self._text(self._decoder.push(id)) if self._is_text else []
        events = self._end()
        if tag == THINK:
            self._begin(Channel.REASONING)
        else:
            self._begin(Channel.FINAL)
            if tag == CALL:
                self._call = _Call(self._calls, self._tools)
        return events

    def finish(self) -> list[Event]:
        """What was held back: the last line ends of a final answer, or a call that was cut off."""
        if self._channel is Channel.REASONING or self._call:
            return self._end()
        held, self._held = self._held, ""
        text = held + self._decoder.finish()
        return [TextDelta(self._channel, text)] if text else []

    def _begin(self, channel: Channel) -> None:
        self._channel, self._at_start, self._held = channel, True, ""

    def _end(self) -> list[Event]:
        """End the part before a tag."""
        events = self._text(self._decoder.finish())
        if held := self._held.rstrip("\n"):
            events.append(TextDelta(self._channel, held))
        self._held = ""
        return events + self._end_call()

    def _end_call(self) -> list[Event]:
        if self._call is None:
            return []
        events = self._call.finish()
        self._calls += self._call.calls
        self.malformed |= self._call.malformed
        self._call = None
        return events

    def _text(self, text: str) -> list[Event]:
        if self._call is not None:
            return self._in_call(self._call, text)
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return []
        self._at_start = False
        text = self._held + text
        bare = self._bare_function(text)
        if bare >= 0 and named_head(text[bare:], self._tools):
            shown = text[:bare].rstrip("\n")
            self._held, self._call = "", _Call(self._calls, self._tools, bare=True)
            events = self._text(text[bare:])
        else:
            shown = (text[:bare] if bare >= 0 else text).rstrip("\n")
            self._held, events = text[len(shown) :], []
        return [TextDelta(self._channel, shown), *events] if shown else events

    def _in_call(self, call: _Call, text: str) -> list[Event]:
        events = call.push(text)
        if call.rest is None:
            return events
        events += self._end_call()
        self._begin(Channel.FINAL)
        return events + self._text(call.rest)

    def _bare_function(self, text: str) -> int:
        """Where a tag of a function that is offered begins, whole or so far; -1 if nowhere."""
        if not self._bare_functions or self._channel is not Channel.FINAL:
            return -1
        start = text.find(FUNCTION)
        while start >= 0:
            if named_head(text[start:], self._tools) is not False:
                return start
            start = text.find(FUNCTION, start + 1)
        return next(
            (len(text) - n for n in range(len(FUNCTION) - 1, 0, -1) if text.endswith(FUNCTION[:n])),
            -1,
        )


class _Call:
    """The body of one tag, in the form that its first character shows; `bare` without the tag."""

    def __init__(self, index: int, tools: dict[str, ToolDescription], bare: bool = False):
        self._index, self._tools, self._bare = index, tools, bare
        self._body = ""
        self._reader: CallBody | None = None

    @property
    def calls(self) -> int:
        """How many calls it is."""
        return self._reader.calls if self._reader is not None else 0

    @property
    def malformed(self) -> bool:
        """Whether it has ended as text, or with arguments that are no JSON."""
        return not self.calls or (self._reader is not None and self._reader.malformed)

    @property
    def rest(self) -> str | None:
        """The text after the call, once it has ended by itself."""
        return self._reader.rest if self._reader is not None else None

    def push(self, text: str) -> list[Event]:
        self._body += text
        if self._reader is None:
            begun = self._body.lstrip()
            if not begun:
                return []
            form = FunctionCall if begun[0] == "<" else JsonCall
            self._reader, text = form(self._index, self._tools), self._body
        return self._reader.push(text)

    def finish(self) -> list[Event]:
        events = self._reader.finish() if self._reader is not None else []
        if self.calls:
            return events
        text = self._body if self._bare else f"{CALL}{self._body}{END_CALL}"
        return [TextDelta(Channel.FINAL, text)]
