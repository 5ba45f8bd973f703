"""Markdown drawn on a terminal while it is still being written."""

from __future__ import annotations

import time
from itertools import dropwhile

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.segment import Segment, Segments
from rich.table import Table

from ossia.cli.text import visible

Lines = list[list[Segment]]

_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # DECAWM: whether a line continues on the next row

_FRAME_SECONDS = 0.08
_REST = 4  # times as long as the last frame took to draw: a long block leaves the model its time


class _WholeTable(TableElement):
    """A table whose cells fold where rich would cut them off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            yield table


class _Markdown(Markdown):
    elements = {**Markdown.elements, "table_open": _WholeTable}  # noqa: RUF012


class MarkdownStream:
    """Markdown drawn as it arrives, without flicker and without ever printing a line twice.

    Blocks that are complete are printed for good and scroll away. Only the last block, which may
    still change, is redrawn in place; when it is taller than the screen its end is shown, and the
    whole once it is complete.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parser = _parser()
        self._open = ""  # the source of the blocks not yet printed for good
        self._rows = 0  # of the screen that the last frame took, above the cursor
        self._next_frame = 0.0

    def push(self, text: str) -> None:
        self._open += visible(text)
        started = time.monotonic()
        if started < self._next_frame:
            return
        closed, self._open = self._split()
        if self._console.is_dumb_terminal:  # cannot go back to redraw
            self._write(closed and [*closed, []], [])
            return
        tail = self._draw(self._open)[-max(1, self._console.height - 2) :]
        self._write([*closed, []] if closed else [], tail)
        now = time.monotonic()
        self._next_frame = now + max(_FRAME_SECONDS, _REST * (now - started))

    def finish(self) -> None:
        """Print what is left for good."""
        self._write(self._draw(self._open), [])
        self._open = ""

    def _split(self) -> tuple[Lines, str]:
        """The lines of the blocks that are complete, and the source of the last one."""
        # An unfinished line can look like a block's start ("#") and then be none ("#1 of 3").
        whole_lines, newline, _ = self._open.rpartition("\n")
        starts = [
            token.map[0]
            for token in self._parser.parse(whole_lines + newline)
            if token.level == 0 and token.map is not None and token.nesting >= 0
        ]
        if len(starts) < 2:
            return [], self._open
        lines = self._open.split("\n")
        closed, rest = lines[: starts[-1]], lines[starts[-1] :]
        return self._draw("\n".join(closed)), "\n".join(rest)

    def _draw(self, source: str) -> Lines:
        """Blocks as lines. rich begins a list with an empty one, with nothing before: dropped."""
        markdown = _Markdown(source, hyperlinks=False)
        markdown.parsed = self._parser.parse(source)
        lines = self._console.render_lines(markdown, pad=False)
        return list(dropwhile(lambda line: not any(segment.text for segment in line), lines))

    def _write(self, for_good: Lines, frame: Lines) -> None:
        """Replace the last frame by lines that stay and a new frame, in one write.

        Terminals disagree with rich about the width of some scripts and emoji. So that a line takes
        one row all the same, and the frame can be found again, its lines are cut at the margin.
        """
        output = f"\r\x1b[{self._rows}A\x1b[J" if self._rows else ""
        output += self._encode(for_good)
        if frame:
            output += f"{_NO_WRAP}{self._encode(frame)}{_WRAP}"
        self._rows = len(frame)
        self._console.file.write(output)
        self._console.file.flush()

    def _encode(self, lines: Lines) -> str:
        with self._console.capture() as capture:
            for line in lines:
                self._console.print(Segments([*line, Segment.line()]), soft_wrap=True)
        return capture.get()


def _parser() -> MarkdownIt:
    # rich leaves raw HTML out of what it draws; read as text, a model's "<div>" stays visible.
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
