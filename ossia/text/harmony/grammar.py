"""Harmony's grammar: the control tokens, the parts of a message's header, and what may follow what.

    message   = <|start|> header <|message|> content ( <|end|> | <|call|> | <|return|> )
    header    = author [recipient] [type] [ channel [recipient] [type] ]
    author    = role [":" name] | name of a tool
    recipient = " to=" name                      at most one in a header, before the type
    channel   = <|channel|> ( "analysis" | "commentary" | "final" )
    type      = " " [ <|constrain|> ] word       at most one in a header

This module is the only description of the format. `write_header` writes headers, `read_header`
reads them exactly as openai_harmony does, and `find_header` also reads what models make of them at
temperature 1. `NEXT` and `following` say what may come next, and `MARKS` how it begins: strict
parsing checks that, and a constraint on sampling can enforce it.

The format is specified at https://github.com/openai/harmony/blob/main/docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from ossia.text.chat import Role
from ossia.text.events import Channel


class ControlToken(StrEnum):
    """The tokens that structure a conversation. Text never contains them."""

    START = "<|start|>"
    CHANNEL = "<|channel|>"
    CONSTRAIN = "<|constrain|>"
    MESSAGE = "<|message|>"
    END = "<|end|>"
    CALL = "<|call|>"
    RETURN = "<|return|>"


Piece = ControlToken | str  # a control token, or text to encode on its own

# Harmony's channels, and what the text on each is to a reader.
CHANNELS: Mapping[str, Channel] = {
    "analysis": Channel.REASONING,
    "commentary": Channel.PREAMBLE,
    "final": Channel.FINAL,
}
FUNCTIONS = "functions"  # the namespace of the user's tools
_NOT_TOOLS = ("assistant", "user", "all")  # recipients


class State(StrEnum):
    """Where the next token stands; the values are openai_harmony's names."""

    EXPECT_START = "ExpectStart"  # between two messages
    HEADER = "Header"
    CONTENT = "Content"


# The control tokens that lead from one state to another. No other token may stand between messages;
# in a header its parts may, in content text.
NEXT: Mapping[State, Mapping[str, State]] = {
    State.EXPECT_START: {ControlToken.START: State.HEADER},
    State.HEADER: {ControlToken.MESSAGE: State.CONTENT},
    State.CONTENT: {
        ControlToken.END: State.EXPECT_START,
        ControlToken.CALL: State.EXPECT_START,
        ControlToken.RETURN: State.EXPECT_START,
    },
}


class Part(Enum):
    """A part of a header."""

    AUTHOR = auto()
    RECIPIENT = auto()
    CHANNEL = auto()
    CONTENT_TYPE = auto()


_TO = "to="
# What a part begins with, before its name or word. A type may lack <|constrain|>.
MARKS: Mapping[Part, tuple[Piece, ...]] = {
    Part.AUTHOR: (),
    Part.RECIPIENT: (f" {_TO}",),
    Part.CHANNEL: (ControlToken.CHANNEL,),
    Part.CONTENT_TYPE: (" ", ControlToken.CONSTRAIN),
}


def following(written: Collection[Part]) -> tuple[Part, ...]:
    """The parts that may come next in a header that has those written. <|message|> may come once
    the author is written.
    """
    if Part.AUTHOR not in written:
        return (Part.AUTHOR,)
    parts = [Part.CHANNEL, Part.CONTENT_TYPE]
    if Part.CONTENT_TYPE not in written:
        parts.insert(0, Part.RECIPIENT)
    return tuple(part for part in parts if part not in written)


@dataclass(frozen=True)
class Header:
    """A message's header. The `name` of a tool's message is the tool's ('functions.weather').

    A `content_type` that the model declares as a constraint begins with that mark:
    '<|constrain|>json'.
    """

    role: Role
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None

    @property
    def tool(self) -> str | None:
        """The tool that the message calls, without the namespace of the user's functions."""
        if self.recipient is None or self.recipient in _NOT_TOOLS:
            return None
        return self.recipient.removeprefix(f"{FUNCTIONS}.")

    @property
    def end(self) -> ControlToken:
        """The token with which the author ends the message. In a stored conversation <|end|> stands
        in place of <|return|>.
        """
        if self.role is not Role.ASSISTANT:
            return ControlToken.END
        if self.recipient is not None:
            return ControlToken.CALL
        return ControlToken.RETURN if self.channel == "final" else ControlToken.END


class HarmonyError(ValueError):
    """Ids that are not harmony."""


def write_header(header: Header) -> Iterator[Piece]:
    """The pieces of a message up to its content, in openai_harmony's order."""
    yield ControlToken.START
    if header.role is Role.TOOL:
        assert header.name, "a tool message needs the tool's name"
        yield header.name
    else:
        yield header.role
        if header.name is not None:
            yield f":{header.name}"
    if header.recipient is not None and header.recipient != "all":
        yield f"{MARKS[Part.RECIPIENT][0]}{header.recipient}"
    if header.channel is not None:
        yield from (*MARKS[Part.CHANNEL], header.channel)
    if header.content_type is not None:
        word = header.content_type.removeprefix(ControlToken.CONSTRAIN)
        constrained = word != header.content_type
        yield from (*MARKS[Part.CONTENT_TYPE], word) if constrained else (f" {word}",)
    yield ControlToken.MESSAGE


# ------------------------------------------------------------------ reading exactly


def read_header(text: str, role: Role | None = None) -> Header:
    """The header that stands between <|start|> and <|message|>, or after the role if that is given.

    Like openai_harmony it takes the channel from wherever it stands, and words without their marks
    for a recipient and a type, in this order; a lone word is a recipient unless it carries
    <|constrain|>. Raises HarmonyError for a header without an author, or with more parts than may
    follow.
    """
    channel, rest = split_channel(text)
    words = split_words(rest)
    name = None
    if role is None:
        role, name = _author(words)
        if name not in (None, role):
            del words[0]
    if words[:1] == [role]:
        del words[0]
    written = {Part.AUTHOR} if channel is None else {Part.AUTHOR, Part.CHANNEL}
    values: dict[Part, str] = {}
    for n, word in enumerate(words):
        part = Part.CONTENT_TYPE if _is_content_type(words, n) else Part.RECIPIENT
        if part not in following(written):
            raise HarmonyError(f"unexpected tokens remaining in message header: {words[n:]}")
        written.add(part)
        values[part] = word
    recipient = values.get(Part.RECIPIENT)
    return Header(
        role,
        name,
        channel,
        recipient and recipient.removeprefix(_TO),
        values.get(Part.CONTENT_TYPE),
    )


def _is_content_type(words: list[str], n: int) -> bool:
    """Whether word `n` after the author is a content type; it is a recipient otherwise."""
    if n < len(words) - 1 or words[n].startswith(_TO):
        return False
    return n > 0 or words[n].startswith(ControlToken.CONSTRAIN)


def _author(words: list[str]) -> tuple[Role, str | None]:
    """The role and the name that a header's first word gives: anything but a role is a tool's name,
    if more follows it.
    """
    if not words:
        raise HarmonyError("message header did not contain a role")
    first = words[0]
    if first in list(Role):
        return Role(first), first if first == Role.TOOL else None
    if len(words) > 1 or first.startswith(_TO):
        return Role.TOOL, first
    raise HarmonyError(f"Unknown role: {first}")


def split_channel(text: str) -> tuple[str | None, str]:
    """A header's channel, and the header without it."""
    before, mark, after = text.partition(ControlToken.CHANNEL)
    if not mark:
        return None, text
    match = re.match(r"[^\s<]+", after)
    if match is None:
        raise HarmonyError("channel marker present but no channel value found in header")
    return match.group(), before + after[match.end() :]


def split_words(text: str) -> list[str]:
    """A header's words; <|constrain|> begins one even without a space before it."""
    mark = ControlToken.CONSTRAIN
    return text.replace(mark, f" {mark}").split()


# ------------------------------------------------------------------ reading what models write

# The header's parts in their order, each of which may be absent; so may marks: the channel's, and
# `to=` before a recipient that <|constrain|> follows.
_FORGIVING = re.compile(
    rf"""\s* (?:(?:{"|".join(Role)})\b)?
         \s* (?:{_TO}(?P<to_of_role>[\w.:-]+))?
         \s* (?:{re.escape(ControlToken.CONSTRAIN)}\s*[\w/+.-]*)?
         \s* (?P<mark>{re.escape(ControlToken.CHANNEL)})? \s* (?P<channel>{"|".join(CHANNELS)})?
         \s* (?:{_TO}(?P<to>[\w.:-]+)
               |(?P<bare_to>[\w.:-]+)(?=\s*{re.escape(ControlToken.CONSTRAIN)}))?
         \s* (?P<type>{re.escape(ControlToken.CONSTRAIN)}\s*[\w/+.-]* | (?P<bare_type>json|code)\b)?
     """,
    re.VERBOSE,
)
# At most one word that is none of a header's parts yet, but could become one.
_UNDECIDED = re.compile(r"\s*[\w.:=-]{0,64}[ ]*")


@dataclass(frozen=True)
class FoundHeader:
    """An assistant's header at the beginning of a text, or as much of one as stands there."""

    header: Header
    end: int  # of its parts in the text
    may_go_on: bool  # whether more text could still be part of it


def find_header(text: str) -> FoundHeader:
    """The header at the beginning of `text`, which ends before <|message|>; it may be empty."""
    match = _match(text)
    return FoundHeader(
        Header(Role.ASSISTANT, channel=match["channel"], recipient=_recipient(match)),
        match.end(),
        text.endswith("\ufffd") or _UNDECIDED.fullmatch(text, match.end()) is not None,
    )


def split_header(text: str) -> tuple[Header, str]:
    """The header that `text` begins with, and the content that follows it without <|message|>.

    Without <|channel|> or a recipient nothing shows that words are a header's: all are content.
    """
    match = _match(text)
    recipient = _recipient(match)
    if match["mark"] is None and recipient is None:
        return Header(Role.ASSISTANT), text.replace(ControlToken.CONSTRAIN, "")
    # "json" or "code" is more likely the content's first word where nothing is called.
    is_word = match["bare_type"] is not None and recipient is None
    content = text[match.start("type") if is_word else match.end() :]
    header = Header(Role.ASSISTANT, channel=match["channel"], recipient=recipient)
    return header, content.replace(ControlToken.CONSTRAIN, "")


def _match(text: str) -> re.Match[str]:
    match = _FORGIVING.match(text)
    assert match is not None, "every part is optional"
    return match


def _recipient(match: re.Match[str]) -> str | None:
    return match["to"] or match["bare_to"] or match["to_of_role"]
