"""How a reply is shown while it is generated: drawn on a terminal, or as plain text in a pipe."""

from __future__ import annotations

import sys
from enum import Enum, auto
from typing import Protocol

from rich.console import Console
from rich.text import Text

from ossia.api import Finished
from ossia.cli.terminal import MarkdownStream, visible
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


class _Section(Enum):
    REASONING = auto()
    MARKDOWN = auto()
    CALL = auto()


class TerminalView:
    """The answer as Markdown, reasoning dimmed or hidden by a spinner, calls on their own lines."""

    def __init__(self, console: Console, hide_reasoning: bool) -> None:
        self._console, self._hide_reasoning = console, hide_reasoning
        self._section: _Section | None = None
        self._channel: Channel | None = None
        self._markdown = MarkdownStream(console)
        self._at_line_start = True
        self._waiting = console.status("thinking", spinner_style="dim")
        self._waiting.start()

    def show(self, event: Event | Finished) -> None:
        match event:
            case TextDelta(Channel.REASONING, piece):
                if not self._hide_reasoning:
                    self._enter(_Section.REASONING)
                    self._write(piece)
            case TextDelta(channel, piece):
                if channel is not self._channel:
                    self._leave()
                    self._channel = channel
                self._enter(_Section.MARKDOWN)
                self._markdown.push(piece)
            case ToolCallStart(name=name):
                self._leave()
                self._enter(_Section.CALL)
                self._write(f"→ {name} ")
            case ToolCallDelta(arguments=arguments):
                self._write(arguments)

    def show_result(self, result: str) -> None:
        self._enter(_Section.CALL)
        if not self._at_line_start:
            self._write("\n")
        self._write(f"← {result}")

    def close(self) -> None:
        self._waiting.stop()
        self._leave()

    def _enter(self, section: _Section) -> None:
        if section is not self._section:
            self._waiting.stop()
            self._leave()
            self._section = section

    def _leave(self) -> None:
        """End the section, and leave a blank line after it."""
        if self._section is _Section.MARKDOWN:
            self._markdown.finish()
            self._channel = None
        elif self._section is not None and not self._at_line_start:
            self._console.print()
        if self._section is not None:
            self._console.print()
        self._section = None

    def _write(self, piece: str) -> None:
        text = visible(piece)
        self._console.print(Text(text, style="dim"), end="", soft_wrap=True)
        if text:
            self._at_line_start = text.endswith("\n")


def terminal_console() -> Console | None:
    """A console if both stdin and stdout are terminals, else None."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Console(highlight=False)
    return None
