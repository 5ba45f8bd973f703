"""The chat format of gpt-oss: chats to harmony's ids, replies to events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Unpack

from ossia.text.chat import Chat, ChatSettings, Messages, Role, ToolDescription, Turn
from ossia.text.constrain import Grammar
from ossia.text.harmony.constrain import reply_grammar
from ossia.text.harmony.grammar import ControlToken
from ossia.text.harmony.messages import Message, from_chat, is_kept, opening, translated
from ossia.text.harmony.parse import ReplyParser
from ossia.text.harmony.render import (
    render,
    render_for_completion,
    render_for_training,
    reply_start,
)
from ossia.text.tokenizer import Tokenizer

_STOPS = (ControlToken.RETURN, ControlToken.CALL, "<|endoftext|>")


class HarmonyFormat:
    """Harmony for any vocabulary that has its control tokens.

    The model always thinks: a chat with `thinking=False` and no effort asks for a low one.
    """

    name = "harmony"

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.stop_ids = frozenset(
            tokenizer.control[name] for name in _STOPS if name in tokenizer.control
        )

    def render(self, chat: Chat | Messages, **settings: Unpack[ChatSettings]) -> list[int]:
        """See ChatFormat.render."""
        messages = from_chat(Chat.of(chat, **settings))
        return render_for_completion(messages, self._tokenizer, auto_drop_analysis=False)

    def render_turns(self, chat: Chat, only: Collection[int] | None = None) -> list[Turn]:
        """See ChatFormat.render_turns. The prompts share their parts, so that no message is encoded
        again for a later reply.
        """
        start = reply_start(self._tokenizer)
        answered = self._encode(opening(chat))  # up to the last answer
        since: list[tuple[Message, list[int]]] = []  # the messages after it, and their ids
        turns: list[Turn] = []
        for n, (said, messages) in enumerate(zip(chat.messages, translated(chat), strict=True)):
            if said.role is Role.ASSISTANT and (only is None or n in only):
                prompt = [*answered, *(id for _, ids in since for id in ids), *start]
                turns += self._reply_turns(prompt, messages)
            since += [(message, self._encode([message])) for message in messages]
            if said.is_answer:
                answered += [id for message, ids in since if is_kept(message) for id in ids]
                since = []
        return turns

    def _reply_turns(self, prompt: list[int], reply: Sequence[Message]) -> list[Turn]:
        """The turns of one reply: a call stops the model, so that what follows is another turn."""
        start = reply_start(self._tokenizer)
        turns: list[Turn] = []
        written: list[int] = []
        for message in reply:
            written += render_for_training([message], self._tokenizer)
            if message.recipient is not None or message is reply[-1]:
                turns.append((prompt, written[len(start) :]))
                prompt = prompt[: -len(start)] + written + start
                written = []
        return turns

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        return render(messages, self._tokenizer, auto_drop_analysis=False)

    def grammar(self, chat: Chat, _prompt: Sequence[int] = (), /) -> Grammar | None:
        """See ChatFormat.grammar. A reply has one call at most, because it ends the reply."""
        return reply_grammar(chat, self._tokenizer) if chat.is_constrained else None

    def parser(
        self, _prompt: Sequence[int] = (), _tools: Sequence[ToolDescription] = (), /
    ) -> ReplyParser:
        """A parser of a reply. Every prompt ends with <|start|>assistant, so it is not read."""
        return ReplyParser(self._tokenizer)
