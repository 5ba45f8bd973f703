"""Harmony's ids back to messages, with the states and errors of openai_harmony's parser."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum

from ossia.text.harmony_messages import Message, Role
from ossia.text.tokenizer import Tokenizer

CHANNEL_MARK = "<|channel|>"
CONSTRAIN_MARK = "<|constrain|>"


class HarmonyError(ValueError):
    """Ids that are not harmony."""


class State(StrEnum):
    """What the next token can be."""

    EXPECT_START = "ExpectStart"  # <|start|>
    HEADER = "Header"  # more of a header, or <|message|>, which ends it
    CONTENT = "Content"  # more text, or a stop token


class StreamParser:
    """Parses completions, or whole conversations, as their ids arrive.

    With a `role` the ids begin inside that role's header, as a completion does whose prompt ends
    with `<|start|>assistant`. Not `strict`: a header that a stop token cuts off becomes a message
    whose content is what the header held besides its channel; strict: control tokens in a header
    are part of it until <|message|>.
    """

    def __init__(self, tokenizer: Tokenizer, role: Role | None = None, *, strict: bool = True):
        self._tokenizer = tokenizer
        self._strict = strict
        control = tokenizer.control
        self._start, self._message = control["<|start|>"], control["<|message|>"]
        self._stops = {control["<|end|>"], control["<|call|>"], control["<|return|>"]}
        self._next_role = role
        self._header_ids: list[int] = []
        self._header: Message | None = None
        self._content: list[str] = []
        self._decoder = tokenizer.stream()
        self.state = State.HEADER if role else State.EXPECT_START
        self.messages: list[Message] = []
        self.last_content_delta: str | None = None

    @property
    def role(self) -> Role | None:
        """Of the message being read; before its header is complete, the role it was promised."""
        return self._header.role if self._header else self._next_role

    @property
    def channel(self) -> str | None:
        return self._header.channel if self._header else None

    @property
    def recipient(self) -> str | None:
        return self._header.recipient if self._header else None

    @property
    def content_type(self) -> str | None:
        return self._header.content_type if self._header else None

    def push(self, id: int) -> None:
        """Read one token. HarmonyError: it cannot stand here; only <|start|> can be next."""
        if self.state is State.EXPECT_START:
            if id != self._start:
                raise HarmonyError(
                    f"Unexpected token {id} while expecting start token {self._start}"
                )
            self._header_ids = []
            self.state = State.HEADER
        elif self.state is State.HEADER:
            self._push_header(id)
        elif id in self._stops:
            self._end_message()
        else:
            self.last_content_delta = self._decoder.push(id) or None
            self._content.append(self.last_content_delta or "")

    def finish(self) -> None:
        """End the ids: a message still open is complete. HarmonyError within a header."""
        if self.state is State.HEADER:
            raise HarmonyError("Unexpected EOS while waiting for message header to complete")
        if self.state is State.CONTENT:
            self._end_message()

    def _push_header(self, id: int) -> None:
        if id == self._message:
            text, role = self._tokenizer.decode(self._header_ids), self._next_role
            self.state, self._next_role = State.EXPECT_START, None
            self._header = parse_header(text, role)
            self._content = []
            self.state = State.CONTENT
        elif id in self._stops and not self._strict:
            if self._next_role and self._header_ids:
                text = self._tokenizer.decode(self._header_ids)
                channel, rest = split_channel(text)
                words = _words(rest)
                if words[:1] == [self._next_role]:
                    words = words[1:]
                self.messages.append(Message(self._next_role, (" ".join(words),), channel=channel))
            self.state, self._next_role = State.EXPECT_START, None
        else:
            self._header_ids.append(id)

    def _end_message(self) -> None:
        assert self._header is not None
        text = "".join(self._content) + self._decoder.finish()
        self.messages.append(replace(self._header, content=(text,)))
        self._header, self.last_content_delta = None, None
        self.state = State.EXPECT_START


def parse(
    ids: list[int], tokenizer: Tokenizer, role: Role | None = None, *, strict: bool = True
) -> list[Message]:
    """The messages of `ids`. HarmonyError where they are not harmony."""
    parser = StreamParser(tokenizer, role, strict=strict)
    for id in ids:
        parser.push(id)
    parser.finish()
    return parser.messages


def split_channel(header: str) -> tuple[str | None, str]:
    """A header's channel, and the header without it."""
    before, mark, after = header.partition(CHANNEL_MARK)
    if not mark:
        return None, header
    match = re.match(r"[^\s<]+", after)
    if match is None:
        raise HarmonyError("channel marker present but no channel value found in header")
    return match.group(), before + after[match.end() :]


def parse_header(header: str, role: Role | None = None) -> Message:
    """What stands between <|start|> and <|message|>, or after the role if that is given, as a
    message without content.

    `role[ to=recipient][<|channel|>channel[ to=recipient]][ [<|constrain|>]content_type]`. In place
    of a role stands a tool's name. A lone word is a recipient unless it carries the constrain mark.
    """
    channel, rest = split_channel(header)
    words = _words(rest)
    name = None
    if role is None:
        if not words:
            raise HarmonyError("message header did not contain a role")
        if words[0] in list(Role):
            role = Role(words[0])
        elif len(words) > 1 or words[0].startswith("to="):
            role, name = Role.TOOL, words.pop(0)
        else:
            raise HarmonyError(f"Unknown role: {words[0]}")
        if role is Role.TOOL and name is None:
            name = words[0]
    if words[:1] == [role]:
        words = words[1:]

    recipient = content_type = None
    if words and _is_content_type(words):
        content_type = words.pop()
    if words:
        recipient = words.pop().removeprefix("to=")
    if words:
        raise HarmonyError(f"unexpected tokens remaining in message header: {' '.join(words)!r}")
    return Message(role, name=name, channel=channel, recipient=recipient, content_type=content_type)


def _words(header: str) -> list[str]:
    """A header's words; the constrain mark begins one even without a space before it."""
    return header.replace(CONSTRAIN_MARK, f" {CONSTRAIN_MARK}").split()


def _is_content_type(words: list[str]) -> bool:
    """Whether the last word of a header is its content type, not its recipient."""
    if words[-1].startswith("to="):
        return False
    return len(words) > 1 or words[-1].startswith(CONSTRAIN_MARK)
