"""Chats for models without roles (GPT-2): one text of all messages, which the reply continues."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Unpack

from ossia.errors import OssiaError
from ossia.text.chat import (
    Chat,
    ChatMessage,
    ChatSettings,
    Messages,
    Role,
    ToolDescription,
    Turn,
)
from ossia.text.constrain import Grammar
from ossia.text.constrain.grammar import plain_grammar
from ossia.text.events import Channel, Event, TextDelta
from ossia.text.tokenizer import Tokenizer


class PlainFormat:
    """The instructions and the contents of all messages in order, without anything that marks their
    roles. A chat's effort, date and thinking have no place in it.

    An assistant's message directly follows what it continued. Any other begins on a line of its
    own, unless it or the text before it has white space there already.
    """

    name = "plain"

    def __init__(self, tokenizer: Tokenizer, *, stop_ids: Iterable[int]):
        self._tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)

    def render(self, chat: Chat | Messages, **settings: Unpack[ChatSettings]) -> list[int]:
        """See ChatFormat.render."""
        chat = Chat.of(chat, **settings)
        _check(chat)
        text = chat.instructions or ""
        for message in chat.messages:
            text = _joined(text, message)
        return self._tokenizer.encode(text)

    def render_turns(self, chat: Chat, only: Collection[int] | None = None) -> list[Turn]:
        """See ChatFormat.render_turns. A reply is its content and the end of the text."""
        _check(chat)
        if not self.stop_ids:
            raise OssiaError("this model has no id that ends a text, so its replies cannot end")
        turns: list[Turn] = []
        text = chat.instructions or ""
        for n, message in enumerate(chat.messages):
            if message.role is Role.ASSISTANT and (only is None or n in only):
                if message.reasoning or message.tool_calls:
                    raise OssiaError(
                        "this model has no chat format, so its replies have no reasoning and no "
                        "tool calls"
                    )
                reply = [*self._tokenizer.encode(message.content), min(self.stop_ids)]
                turns.append((self._tokenizer.encode(text), reply))
            text = _joined(text, message)
        return turns

    def grammar(self, chat: Chat, _prompt: Sequence[int] = (), /) -> Grammar | None:
        """See ChatFormat.grammar. The model does not know of the answer's form."""
        return None if chat.structure is None else plain_grammar(chat.structure, self.stop_ids)

    def parser(
        self, _prompt: Sequence[int] = (), _tools: Sequence[ToolDescription] = (), /
    ) -> PlainParser:
        """A parser that takes every token for text of the answer."""
        return PlainParser(self._tokenizer, frozenset(self._tokenizer.control.values()))


def _check(chat: Chat) -> None:
    """Raise OssiaError for what a text without structure cannot ask for."""
    if chat.offered_tools:
        raise OssiaError("tools: this model has no chat format, so it cannot call tools")


def _joined(text: str, message: ChatMessage) -> str:
    """The text with a message after it."""
    together = not text or text[-1].isspace() or message.content[:1].isspace()
    if message.content and message.role is not Role.ASSISTANT and not together:
        text += "\n"
    return text + message.content


class PlainParser:
    """Turns a reply's ids into events: all text is final, and the ids of `hidden` are not shown."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int]):
        self._decoder, self._hidden = tokenizer.stream(), hidden
        self.channel: Channel | None = None
        self.malformed = False  # nothing can be wrong with bare text

    def push(self, id: int) -> list[Event]:
        """The text that `id` completes."""
        self.channel = None if id in self._hidden else Channel.FINAL
        return _final(self._decoder.push(id)) if self.channel else []

    def finish(self) -> list[Event]:
        """U+FFFD for half a character."""
        return _final(self._decoder.finish())


def _final(text: str) -> list[Event]:
    return [TextDelta(Channel.FINAL, text)] if text else []
