"""A reply drawn on a terminal: Markdown, dim reasoning, and the calls of tools."""

from __future__ import annotations

from enum import Enum, auto

from rich.console import Console
from rich.text import Text

from ossia.api import Finished
from ossia.cli.markdown import MarkdownStream
from ossia.cli.text import WordWrap, visible
from ossia.text import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart


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
        self._words = WordWrap(self._print, lambda: console.width)
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
        if not self._words.at_line_start:
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
        elif self._section is not None and not self._words.at_line_start:
            self._words.push("\n")
        if self._section is not None:
            self._console.print()
        self._section = None

    def _write(self, piece: str) -> None:
        self._words.push(visible(piece))

    def _print(self, piece: str) -> None:
        self._console.print(Text(piece, style="dim"), end="", soft_wrap=True)
