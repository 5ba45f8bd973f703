"""Chats for models without roles (GPT-2): one text of all messages, which the reply continues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ossia.errors import OssiaError
from ossia.text.chat import Turn, read_messages
from ossia.text.events import Channel, Event, TextDelta
from ossia.text.tokenizer import Tokenizer


class PlainFormat:
    """The contents of all messages in order, with nothing that marks their roles.

    An assistant's message follows what it continued as it stands; any other begins on a line of its
    own, unless it or the text before it has white space there already.
    """

    name = "plain"

    def __init__(self, tokenizer: Tokenizer, *, stop_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
    ) -> list[int]:
        """See ChatFormat.render. Effort, date and thinking have nobody to tell them to."""
        if tools:
            raise OssiaError("tools: this model has no chat format, so it cannot call tools")
        text = ""
        for message in read_messages(messages):
            joined = not text or text[-1].isspace() or message.content[:1].isspace()
            if message.content and message.role != "assistant" and not joined:
                text += "\n"
            text += message.content
        return self._tokenizer.encode(text)

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        date: str | None = None,
    ) -> list[Turn]:
        """See ChatFormat.render_turns. The reply is its content and the end of the text."""
        message = read_messages(messages)[-1]
        if message.reasoning or message.tool_calls:
            raise OssiaError(
                "this model has no chat format, so its replies have no reasoning and no tool calls"
            )
        if not self.stop_ids:
            raise OssiaError("this model has no id that ends a text, so no reply of it ends")
        prompt = self.render(messages[:-1], tools=tools)
        return [(prompt, [*self._tokenizer.encode(message.content), min(self.stop_ids)])]

    def parser(self, prompt: Sequence[int] = ()) -> PlainParser:
        """A parser that takes every token for text of the answer."""
        return PlainParser(self._tokenizer)


class PlainParser:
    """All text is final; control tokens are not shown."""

    def __init__(self, tokenizer: Tokenizer):
        self._control = frozenset(tokenizer.control.values())
        self._decoder = tokenizer.stream()

    def push(self, id: int) -> list[Event]:
        """The text that `id` completes."""
        return [] if id in self._control else _final(self._decoder.push(id))

    def finish(self) -> list[Event]:
        """U+FFFD for half a character."""
        return _final(self._decoder.finish())


def _final(text: str) -> list[Event]:
    return [TextDelta(Channel.FINAL, text)] if text else []
