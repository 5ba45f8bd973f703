"""How a reply is shown while it is generated, and how it is in a pipe: as plain text."""

from __future__ import annotations

from typing import Protocol

from ossia.api import Finished
from ossia.text import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart


class ReplyView(Protocol):
    """Shows the events of one reply and the results of its calls. `close` is called once, at the
    end, however the reply ends.
    """

    def show(self, event: Event | Finished) -> None: ...
    def show_result(self, result: str) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """The answer as plain text without escape codes, and the reasoning if asked for."""

    def __init__(self, show_reasoning: bool) -> None:
        self._show_reasoning = show_reasoning
        self._section: object = None
        self._at_line_start = True

    def show(self, event: Event | Finished) -> None:
        match event:
            case TextDelta(Channel.REASONING, piece):
                if self._show_reasoning:
                    self._write(Channel.REASONING, piece)
            case TextDelta(channel, piece):
                self._write(channel, piece)
            case ToolCallStart(index, name):
                self._write(index, f"{name} ")
            case ToolCallDelta(index, arguments):
                self._write(index, arguments)

    def show_result(self, result: str) -> None:
        self.close()
        self._write("result", f"<- {result}")

    def close(self) -> None:
        if not self._at_line_start:
            print(flush=True)
            self._at_line_start = True

    def _write(self, section: object, piece: str) -> None:
        """Append to a section. A new section begins on a line of its own."""
        if section != self._section:
            piece = piece.lstrip("\n")
            if not piece:
                return
            self.close()
            self._section = section
        print(piece, end="", flush=True)
        self._at_line_start = piece.endswith("\n")
