"""The chat format of gpt-oss: chats to harmony ids, replies to events, however malformed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ossia.text.chat import Turn, read_messages
from ossia.text.events import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart
from ossia.text.harmony_messages import FUNCTIONS, Role, from_chat, from_reply
from ossia.text.harmony_parse import CONSTRAIN_MARK
from ossia.text.harmony_render import (
    CONTROL_TOKENS,
    render_for_completion,
    render_for_training,
)
from ossia.text.tokenizer import Tokenizer

CHANNELS = {
    "analysis": Channel.REASONING,
    "commentary": Channel.PREAMBLE,
    "final": Channel.FINAL,
}
NOT_TOOLS = {"assistant", "user", "all"}  # recipients that are no tool

# A header, or as much of one as the text begins with. What a model may leave out is optional: the
# channel's mark, `to=` before a recipient that <|constrain|> follows.
_HEADER = re.compile(
    r"""\s* (?:(?:assistant|user|system|developer|tool)\b)?
        \s* (?:to=(?P<to_role>[\w.:-]+))? \s* (?:<\|constrain\|>\s*[\w/+.-]*)?
        \s* (?P<mark><\|channel\|>)? \s* (?P<channel>analysis|commentary|final)?
        \s* (?:to=(?P<to>[\w.:-]+) | (?P<bare_to>[\w.:-]+)(?=\s*<\|constrain\|>))?
        \s* (?P<type><\|constrain\|>\s*[\w/+.-]* | (?:json|code)\b)?""",
    re.VERBOSE,
)
# What may still grow into a header: at most one word that is none of its parts yet.
_UNDECIDED = re.compile(r"\s*[\w.:=-]{0,64}[ ]*")


class HarmonyFormat:
    """Harmony for any vocabulary that has its control tokens."""

    name = "harmony"

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.stop_ids = frozenset(
            id
            for name, id in tokenizer.control.items()
            if name in ("<|return|>", "<|call|>", "<|endoftext|>")
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
    ) -> list[int]:
        """See ChatFormat.render. The model always thinks; `thinking=False` means low effort."""
        if reasoning_effort is None and not thinking:
            reasoning_effort = "low"
        conversation = from_chat(
            messages, tools=tools, reasoning_effort=reasoning_effort, date=date
        )
        return render_for_completion(conversation, self._tokenizer, auto_drop_analysis=False)

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        date: str | None = None,
    ) -> list[Turn]:
        """See ChatFormat.render_turns. A call stops the model; a next one is a turn of its own."""
        prompt = self.render(
            messages[:-1], tools=tools, reasoning_effort=reasoning_effort, date=date
        )
        begin = [self._tokenizer.control["<|start|>"], *self._tokenizer.encode(Role.ASSISTANT)]
        parts = from_reply(read_messages(messages)[-1])
        turns: list[Turn] = []
        written: list[int] = []
        for part in parts:
            written += render_for_training([part], self._tokenizer)
            if part.recipient is not None or part is parts[-1]:
                turns.append((prompt, written[len(begin) :]))
                prompt = prompt[: -len(begin)] + written + begin
                written = []
        return turns

    def parser(self, prompt: Sequence[int] = ()) -> HarmonyParser:
        """A parser of a reply. Every prompt ends with <|start|>assistant, so none is needed."""
        return HarmonyParser(self._tokenizer)


class HarmonyParser:
    """A reply's ids to events.

    Well-formed harmony is read as `harmony_parse.StreamParser` reads it. In malformed harmony every
    word that is no part of a header reaches the user: on the channel and for the recipient that its
    header still names, else as final text. Models write headers without <|message|>, text without a
    header, messages without <|start|> or <|end|>. A second message on a channel is a new paragraph.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._control = {id: name for name, id in tokenizer.control.items()}
        self._decoder = tokenizer.stream()
        self._header: list[int] | None = []  # ids of a header not complete; None within a message
        self._channel = Channel.FINAL
        self._call: int | None = None  # the tool call that the message is, if it is one
        self._calls = 0
        self._spoken: set[Channel] = set()
        self._paragraph_due = False

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes. Control tokens are never shown."""
        name = self._control.get(id)
        if name is not None and name not in CONTROL_TOKENS:
            return []
        if self._header is None:
            return self._push_content(id, name)
        return self._push_header(self._header, id, name)

    def finish(self) -> list[Event]:
        """What a reply cut off still holds: a header's text, U+FFFD for half a character."""
        if self._header is None:
            return self._end_message()
        return self._give_up_header(self._header)

    def _push_content(self, id: int, name: str | None) -> list[Event]:
        match name:
            case None:
                return self._text(self._decoder.push(id))
            case "<|message|>" | "<|constrain|>":  # no place within a message
                return []
            case "<|channel|>":  # the next message, its beginning left out
                events = self._end_message()
                self._header = [id]
                return events
            case _:
                return self._end_message()

    def _push_header(self, header: list[int], id: int, name: str | None) -> list[Event]:
        match name:
            case "<|message|>":
                return self._begin_message(_match(self._tokenizer.decode(header)))
            case "<|channel|>":
                events: list[Event] = []
                text = self._tokenizer.decode(header)
                if id in header or text[_match(text).end() :].strip():
                    events = self._give_up_header(header)
                    header = []
                self._header = [*header, id]
                return events
            case "<|constrain|>":
                header.append(id)
                return []
            case None:
                header.append(id)
                return self._give_up_unless_header(header)
            case _:  # a new start, or a stop token
                return self._give_up_header(header, calls=name == "<|call|>")

    def _give_up_unless_header(self, header: list[int]) -> list[Event]:
        """What can no longer become a header, and all that follows, is a message's text."""
        text = self._tokenizer.decode(header)
        if text.endswith("\ufffd") or _UNDECIDED.fullmatch(text, _match(text).end()):
            return []
        match, rest = _read_header(text)
        return self._begin_message(match) + self._text(rest.lstrip())

    def _give_up_header(self, header: list[int], calls: bool = False) -> list[Event]:
        """A header without <|message|>: its other words are a message. <|call|> needs none."""
        match, rest = _read_header(self._tokenizer.decode(header))
        self._header = []
        if not rest.strip() and not (calls and _tool(match)):
            return []
        return self._begin_message(match) + self._text(rest.strip()) + self._end_message()

    def _begin_message(self, header: re.Match[str]) -> list[Event]:
        self._header = None
        self._channel = CHANNELS.get(header["channel"], Channel.FINAL)
        self._paragraph_due = self._channel in self._spoken
        tool = _tool(header)
        if tool is None:
            self._call = None
            return []
        self._call, self._calls = self._calls, self._calls + 1
        return [ToolCallStart(self._call, tool)]

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


def _read_header(text: str) -> tuple[re.Match[str], str]:
    """The parts of a header that `text` begins with, and what follows them.

    Without a channel's mark or a recipient nothing shows that words are a header's: all of them
    follow.
    """
    match = _match(text)
    if match["mark"] is None and _recipient(match) is None:
        return _match(""), text.replace(CONSTRAIN_MARK, "")
    if match["type"] in ("json", "code") and _recipient(match) is None:
        return match, text[match.start("type") :]  # more likely the text's first word
    return match, text[match.end() :].replace(CONSTRAIN_MARK, "")


def _match(text: str) -> re.Match[str]:
    match = _HEADER.match(text)
    assert match is not None, "every part of a header is optional"
    return match


def _recipient(header: re.Match[str]) -> str | None:
    return header["to"] or header["bare_to"] or header["to_role"]


def _tool(header: re.Match[str]) -> str | None:
    """The tool that a header calls, without the namespace of the user's functions."""
    recipient = _recipient(header)
    if recipient is None or recipient in NOT_TOOLS:
        return None
    return recipient.removeprefix(f"{FUNCTIONS}.")
