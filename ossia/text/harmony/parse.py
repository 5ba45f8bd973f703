"""Harmony's ids read back: `StreamParser` reads them exactly as openai_harmony does, `ReplyParser`
loses no word of a malformed reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from ossia.text.chat import Role
from ossia.text.events import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart
from ossia.text.harmony.grammar import (
    CHANNELS,
    NEXT,
    ControlToken,
    HarmonyError,
    Header,
    State,
    find_header,
    read_header,
    split_channel,
    split_header,
    split_words,
)
from ossia.text.harmony.messages import Message
from ossia.text.tokenizer import Tokenizer

# Ids of a header, which is read again at each of them. Names of functions have 64 characters.
_LONGEST_HEADER = 512


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
        self._control = {tokenizer.control[token]: token for token in ControlToken}
        self._next_role = role
        self._header_ids: list[int] = []
        self._header: Header | None = None
        self._content: list[str] = []
        self._decoder = tokenizer.stream()
        self.state = State.HEADER if role else State.EXPECT_START
        self.messages: list[Message] = []
        self.last_content_delta: str | None = None

    @property
    def role(self) -> Role | None:
        """The role in the header of the current message; before its end, the expected role."""
        return self._header.role if self._header else self._next_role

    @property
    def channel(self) -> str | None:
        """The channel of the current message, once its header is complete."""
        return self._header.channel if self._header else None

    @property
    def recipient(self) -> str | None:
        """The recipient of the current message, once its header is complete."""
        return self._header.recipient if self._header else None

    @property
    def content_type(self) -> str | None:
        """The content type of the current message, once its header is complete."""
        return self._header.content_type if self._header else None

    def push(self, id: int) -> None:
        """Read one token. Raises HarmonyError if it cannot stand here; then only <|start|> may
        follow.
        """
        token = self._control.get(id)
        following = NEXT[self.state].get(token) if token is not None else None
        match self.state:
            case State.EXPECT_START:
                if following is None:
                    start = self._tokenizer.control[ControlToken.START]
                    raise HarmonyError(f"Unexpected token {id} while expecting start token {start}")
                self._header_ids = []
                self.state = following
            case State.HEADER if following is not None:
                self._end_header(following)
            case State.HEADER if token in NEXT[State.CONTENT] and not self._strict:
                self._give_up_header()
            case State.HEADER:
                self._header_ids.append(id)
            case State.CONTENT if following is not None:
                self._end_message()
            case State.CONTENT:
                self.last_content_delta = self._decoder.push(id) or None
                self._content.append(self.last_content_delta or "")

    def finish(self) -> None:
        """End the ids, and with them a message that is still open. Raises HarmonyError in a
        header.
        """
        if self.state is State.HEADER:
            raise HarmonyError("Unexpected EOS while waiting for message header to complete")
        if self.state is State.CONTENT:
            self._end_message()

    def _end_header(self, following: State) -> None:
        text, role = self._tokenizer.decode(self._header_ids), self._next_role
        self.state, self._next_role = State.EXPECT_START, None  # also if the header is an error
        self._header = read_header(text, role)
        self._content = []
        self.state = following

    def _give_up_header(self) -> None:
        """Make a message of a header that a stop token ends."""
        role, self._next_role, self.state = self._next_role, None, State.EXPECT_START
        if role is None or not self._header_ids:
            return
        channel, rest = split_channel(self._tokenizer.decode(self._header_ids))
        words = split_words(rest)
        if words[:1] == [role]:
            del words[0]
        self.messages.append(Message(role, channel=channel, content=(" ".join(words),)))

    def _end_message(self) -> None:
        assert self._header is not None
        text = "".join(self._content) + self._decoder.finish()
        self.messages.append(Message(**vars(self._header), content=(text,)))
        self._header, self.last_content_delta = None, None
        self.state = State.EXPECT_START


def parse(
    ids: Sequence[int], tokenizer: Tokenizer, role: Role | None = None, *, strict: bool = True
) -> list[Message]:
    """The messages of `ids`. Raises HarmonyError where they are not harmony."""
    parser = StreamParser(tokenizer, role, strict=strict)
    for id in ids:
        parser.push(id)
    parser.finish()
    return parser.messages


class ReplyParser:
    """Turns a reply's ids into events.

    Well-formed harmony is read as `StreamParser` reads it. In malformed harmony every word that is
    no part of a header reaches the user: on the channel and for the recipient that its header still
    names, else as final text. Models write headers without <|message|>, text without a header, and
    messages without <|start|> or <|end|>. A second message on a channel is a new paragraph.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._control = frozenset(tokenizer.control.values())
        self._token = {tokenizer.control[token]: token for token in ControlToken}
        self._decoder = tokenizer.stream()
        self._header: list[int] | None = []  # ids of an incomplete header; None within a message
        self._channel = Channel.FINAL
        self._call: int | None = None  # the tool call that the message is, if it is one
        self._calls = 0
        self._spoken: set[Channel] = set()
        self._paragraph_due = False
        self._is_text = False  # the latest id, unless it is part of a header
        self.malformed = False

    @property
    def channel(self) -> Channel | None:
        """See Parser.channel."""
        within = self._header is None and self._call is None
        return self._channel if within and self._is_text else None

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes. Control tokens are never shown."""
        token = self._token.get(id)
        self._is_text = id not in self._control
        if token is None and not self._is_text:
            return []
        if self._header is None:
            return self._push_content(id, token)
        return self._push_header(self._header, id, token)

    def finish(self) -> list[Event]:
        """What a reply that was cut off still holds: a header's text, or U+FFFD for half a
        character.
        """
        if self._header is None:
            return self._end_message()
        return self._give_up_header(self._header)

    def _push_content(self, id: int, token: ControlToken | None) -> list[Event]:
        match token:
            case None:
                return self._text(self._decoder.push(id))
            case ControlToken.MESSAGE | ControlToken.CONSTRAIN:  # no place within a message
                self.malformed = True
                return []
            case ControlToken.CHANNEL:  # the next message, whose beginning is missing
                self.malformed = True
                events = self._end_message()
                self._header = [id]
                return events
            case _:
                return self._end_message()

    def _push_header(self, header: list[int], id: int, token: ControlToken | None) -> list[Event]:
        match token:
            case ControlToken.MESSAGE:
                return self._begin_message(find_header(self._tokenizer.decode(header)).header)
            case ControlToken.CHANNEL:
                events: list[Event] = []
                text = self._tokenizer.decode(header)
                if id in header or text[find_header(text).end :].strip():
                    events = self._give_up_header(header)
                    header = []
                self._header = [*header, id]
                return events
            case ControlToken.CONSTRAIN:
                header.append(id)
                return []
            case None:
                header.append(id)
                return self._give_up_unless_header(header)
            case _:  # a new start, or a stop token
                return self._give_up_header(header, calls=token is ControlToken.CALL)

    def _give_up_unless_header(self, header: list[int]) -> list[Event]:
        """Once the ids can no longer become a header, they and all that follows are content."""
        text = self._tokenizer.decode(header)
        if len(header) <= _LONGEST_HEADER and find_header(text).may_go_on:
            return []
        self.malformed = True
        found, content = split_header(text)
        return self._begin_message(found) + self._text(content.lstrip())

    def _give_up_header(self, header: list[int], calls: bool = False) -> list[Event]:
        """Make a message of a header without <|message|>. With <|call|> it may lack content."""
        found, content = split_header(self._tokenizer.decode(header))
        self._header = []
        if not content.strip() and not (calls and found.tool):
            return []
        self.malformed = True
        return self._begin_message(found) + self._text(content.strip()) + self._end_message()

    def _begin_message(self, header: Header) -> list[Event]:
        self._header = None
        self._channel = CHANNELS.get(header.channel or "", Channel.FINAL)
        self._paragraph_due = self._channel in self._spoken
        if header.tool is None:
            self._call = None
            return []
        self._call, self._calls = self._calls, self._calls + 1
        return [ToolCallStart(self._call, header.tool)]

    def _end_message(self) -> list[Event]:
        events = self._text(self._decoder.finish())
        self._header = []
        return events

    def _text(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._call is not None:
            return [ToolCallDelta(self._call, text)]
        if self._paragraph_due:
            text = "\n\n" + text
        self._paragraph_due = False
        self._spoken.add(self._channel)
        return [TextDelta(self._channel, text)]
