"""Harmony's replies as a grammar: the same headers and messages that `grammar` describes, with the
recipients, arguments and final text that a chat asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from ossia.errors import OssiaError
from ossia.text.chat import Chat, Role
from ossia.text.constrain.grammar import Grammar, ids, literal
from ossia.text.events import Channel
from ossia.text.harmony.grammar import (
    CHANNELS,
    FUNCTIONS,
    MARKS,
    NEXT,
    ControlToken,
    Header,
    Part,
    Piece,
    State,
    following,
)
from ossia.text.harmony.messages import BUILT_IN_ARGUMENTS, JSON_ARGUMENTS
from ossia.text.tokenizer import Tokenizer

_CHANNEL = {channel: name for name, channel in CHANNELS.items()}
_NAME = re.compile(r"[\w.:-]+")  # what a header can hold


def reply_grammar(chat: Chat, tokenizer: Tokenizer) -> Grammar:
    """The replies to a prompt that ends with <|start|>assistant: any number of messages to think
    and to say what comes, then the one that ends the reply. That is an answer, in the form that the
    chat asks for, or a call that it allows, with the arguments that the function takes. What a
    built-in tool is given is free. Nothing is said before an answer that has a form: to clients it
    would be part of the answer.

    Raises OssiaError for a function whose name no header can hold.
    """
    control = tokenizer.control
    grammar = Grammar(frozenset((control[ControlToken.RETURN], control[ControlToken.CALL])))
    messages = _Messages(grammar, tokenizer)
    again = messages.written((*_START, Role.ASSISTANT))
    thought = messages.rule("thought", Header(Role.ASSISTANT, channel=_CHANNEL[Channel.REASONING]))
    said = messages.rule("preamble", Header(Role.ASSISTANT, channel=_CHANNEL[Channel.PREAMBLE]))
    grammar.rule("thinking", f"{thought} {again}")
    grammar.rule("talking", f"({thought} | {said}) {again}")
    replies = []
    if calls := _calls(chat, messages):
        grammar.rule("call", *calls)
        replies.append("talking* call")
    if not chat.must_call:
        # No type of the content: without a recipient before it openai_harmony reads it as one.
        header = Header(Role.ASSISTANT, channel=_CHANNEL[Channel.FINAL])
        answer = messages.rule("answer", header, grammar.text_of(chat.structure))
        replies.append(f"{'talking' if chat.structure is None else 'thinking'}* {answer}")
    grammar.rule("start", *replies)
    return grammar


def _calls(chat: Chat, messages: _Messages) -> list[str]:
    """A rule for each function and each built-in tool that may be called."""
    calls = []
    for n, callee in enumerate(chat.callees):
        if not _NAME.fullmatch(callee.name):
            raise OssiaError(f"{callee.where}.name: {callee.name!r} is no name in harmony")
        header = Header(
            Role.ASSISTANT,
            channel=_CHANNEL[Channel.PREAMBLE],
            recipient=f"{FUNCTIONS}.{callee.name}",
            content_type=JSON_ARGUMENTS,
        )
        calls.append(messages.rule(f"call_{n}", header, messages.text_of(callee.arguments)))
    if chat.tool_choice.functions is None:
        for n, name in enumerate(name for space in chat.offered_built_in for name in space.names):
            header = Header(
                Role.ASSISTANT,
                channel=_CHANNEL[Channel.REASONING],
                recipient=name,
                content_type=BUILT_IN_ARGUMENTS,
            )
            calls.append(messages.rule(f"built_in_{n}", header))
    return calls


_START = tuple(token for token, state in NEXT[State.EXPECT_START].items() if state is State.HEADER)


class _Messages:
    """Writes the assistant's messages as rules."""

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        self._grammar, self._tokenizer = grammar, tokenizer
        self.text_of = grammar.text_of

    def rule(self, name: str, header: Header, content: str | None = None) -> str:
        """The rule of a message after its author, in each order that its header can have, and
        without the type of its content too.
        """
        content = self.text_of(None) if content is None else content
        begin = next(t for t, state in NEXT[State.HEADER].items() if state is State.CONTENT)
        end = self.written((header.end,))
        headers = self._grammar.rule(f"{name}_header", *self._headers(header))
        return self._grammar.rule(name, f"{headers} {self.written((begin,))} {content} {end}")

    def written(self, pieces: tuple[Piece, ...]) -> str:
        """Pieces as the grammar writes them: control tokens by id, the text between as one."""
        written = []
        for is_control, group in groupby(pieces, key=lambda piece: isinstance(piece, ControlToken)):
            if is_control:
                written += [ids([self._tokenizer.control[piece]]) for piece in group]
            else:
                written.append(literal("".join(group)))
        return " ".join(written)

    def _headers(self, header: Header) -> Iterator[str]:
        values: dict[Part, tuple[Piece, ...]] = {}
        if header.recipient is not None:
            values[Part.RECIPIENT] = (*MARKS[Part.RECIPIENT], header.recipient)
        if header.channel is not None:
            values[Part.CHANNEL] = (*MARKS[Part.CHANNEL], header.channel)
        optional = frozenset(values)
        if header.content_type is not None:
            word = header.content_type.removeprefix(ControlToken.CONSTRAIN)
            mark = MARKS[Part.CONTENT_TYPE] if word != header.content_type else (" ",)
            values[Part.CONTENT_TYPE] = (*mark, word)
        for parts in dict.fromkeys((optional, frozenset(values))):
            for order in _orders(parts, (Part.AUTHOR,)):
                yield self.written(tuple(piece for part in order for piece in values[part]))


def _orders(parts: frozenset[Part], written: tuple[Part, ...]) -> Iterator[tuple[Part, ...]]:
    """Each order in which a header can have these parts after those written."""
    rest = parts.difference(written)
    if not rest:
        yield ()
    for part in following(written):
        if part in rest:
            for order in _orders(parts, (*written, part)):
                yield (part, *order)
