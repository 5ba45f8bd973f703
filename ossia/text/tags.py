"""Replies with tagged parts, as Qwen3 writes them: <think>…</think>, <tool_call>…</tool_call>."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ossia.text.events import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart
from ossia.text.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"

_CALL_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_CALL_END = re.compile(r"\s*\}\s*\Z")  # the brace that closes the call, not the arguments


class TagParser:
    """Turns a reply's ids into events. Tags are control tokens; the same characters in ordinary
    tokens are text.

    Line ends around tags belong to the format, not to the text. A call's arguments stream as the
    model writes them, once its name is known. A call that is not JSON with a name becomes final
    text, tags included. A call inside unfinished reasoning ends the reasoning; tags that close
    nothing are dropped.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self._tag = {
            tokenizer.control[tag]: tag
            for tag in (THINK, END_THINK, CALL, END_CALL)
            if tag in tokenizer.control
        }
        self._control = frozenset(tokenizer.control.values())
        self._decoder = tokenizer.stream()
        self._channel = Channel.FINAL
        self._at_start = False  # of a part: line ends there belong to the format
        self._line_ends = ""  # held back: they belong to the format if a tag follows
        self._call: _Call | None = None
        self._calls = 0
        if self._begins_thinking(tokenizer, prompt):
            self._begin(Channel.REASONING)

    def _begins_thinking(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends with an open <think>, as the templates of Thinking-2507 do."""
        for id in reversed(prompt):
            if id in self._control or tokenizer.token_bytes(id).strip():
                return self._tag.get(id) == THINK
        return False

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes."""
        tag = self._tag.get(id)
        if tag is None:
            return [] if id in self._control else self._text(self._decoder.push(id))
        events = self._end()
        if tag == THINK:
            self._begin(Channel.REASONING)
        elif tag == CALL:
            self._begin(Channel.FINAL)
            self._call = _Call(self._calls)
            self._calls += 1
        else:
            self._begin(Channel.FINAL)
        return events

    def finish(self) -> list[Event]:
        """What was held back: the last line ends of a final answer, or a call that was cut off."""
        if self._channel is Channel.REASONING or self._call:
            return self._end()
        held, self._line_ends = self._line_ends, ""
        text = held + self._decoder.finish()
        return [TextDelta(self._channel, text)] if text else []

    def _begin(self, channel: Channel) -> None:
        self._channel, self._at_start, self._line_ends = channel, True, ""

    def _end(self) -> list[Event]:
        events = self._text(self._decoder.finish())
        self._line_ends = ""
        if self._call is not None:
            events += self._call.finish()
            self._calls -= not self._call.started
            self._call = None
        return events

    def _text(self, text: str) -> list[Event]:
        if self._call is not None:
            return self._call.push(text)
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return []
        self._at_start = False
        text = self._line_ends + text
        shown = text.rstrip("\n")
        self._line_ends = text[len(shown) :]
        return [TextDelta(self._channel, shown)] if shown else []


class _Call:
    """The body of one <tool_call>. Its arguments stream once the name before them is known."""

    def __init__(self, index: int):
        self.started = False
        self._index = index
        self._body = ""
        self._arguments_at = self._shown_to = 0

    def push(self, text: str) -> list[Event]:
        self._body += text
        events: list[Event] = []
        if not self.started:
            head = _CALL_HEAD.match(self._body)
            if head is None:
                return []
            self._arguments_at = self._shown_to = head.end()
            events += self._start(head[1])
        held = _CALL_END.search(self._body, self._shown_to)
        return events + self._arguments(held.start() if held else len(self._body))

    def finish(self) -> list[Event]:
        if self.started:
            if _is_json(self._body[self._arguments_at : self._shown_to]):
                return []
            return self._arguments(len(self._body))
        try:
            call = json.loads(self._body, strict=False)
        except json.JSONDecodeError:
            call = None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return [TextDelta(Channel.FINAL, f"{CALL}{self._body}{END_CALL}")]
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return [*self._start(call["name"]), ToolCallDelta(self._index, arguments)]

    def _start(self, name: str) -> list[Event]:
        self.started = True
        return [ToolCallStart(self._index, name)]

    def _arguments(self, end: int) -> list[Event]:
        text = self._body[self._shown_to : end]
        self._shown_to = end
        return [ToolCallDelta(self._index, text)] if text else []


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError:
        return False
    return True
