"""Plain text for a terminal or a pipe: harmless, dim where it can be, and wrapped between words.

Without rich, which would take a tenth of a second to import where nothing is drawn.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import TextIO
from unicodedata import combining, east_asian_width

# C0 and C1 control characters, DEL: all but newline and tab could move the cursor, retitle the
# window or worse.
_CONTROL: dict[int, int | None] = {
    code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)
}
_CONTROL[0x0D] = None  # of a Windows line ending
_CONTROL |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

# A line break, blanks, or the part of a word between two places where a line may break. Chinese
# and Japanese have no blanks: a line may break after each of their characters.
_WIDE = r"\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60\U0001f300-\U0003fffd"
_PARTS = re.compile(rf"\n|[^\S\n]+|[{_WIDE}]|[^\s{_WIDE}]+")

NARROW = 56  # columns below which a list puts its texts below its names


def visible(text: str) -> str:
    """The text with control characters as symbols, so that nothing a model writes can steer the
    terminal.
    """
    return text.translate(_CONTROL)


def dim(text: str, stream: TextIO) -> str:
    """The text, faint where the stream is a terminal that can show it."""
    return f"\x1b[2m{text}\x1b[0m" if _can_style(stream) else text


def red(text: str, stream: TextIO) -> str:
    """The text in red where the stream is a terminal that may show colors (https://no-color.org)."""
    able = _can_style(stream) and not os.environ.get("NO_COLOR")
    return f"\x1b[31m{text}\x1b[0m" if able else text


def _can_style(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def note(message: str) -> None:
    """A remark beside the output: on stderr, dim and wrapped on a terminal."""
    print(dim(wrapped(message, sys.stderr), sys.stderr), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A result, on stdout: wrapped on a terminal."""
    print(wrapped(text, sys.stdout))


def columns(stream: TextIO) -> int | None:
    """The width of the terminal that the stream is; None if it is none."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:  # a terminal that says no size, or a stream that only looks like one
        return 80


def wrapped(text: str, stream: TextIO) -> str:
    """The text with line breaks between words where the stream is a terminal. A line's own
    indentation is that of the lines that it is broken into.
    """
    width = columns(stream)
    if width is None:
        return text
    return "\n".join(_folded(line, width, _indent(line)) for line in text.split("\n"))


def table(rows: Iterable[tuple[str, str]], stream: TextIO, gap: int = 2) -> str:
    """Names and their texts in two columns; on a narrow terminal each text below its name."""
    rows, width = list(rows), columns(stream)
    left = max(len(name) for name, _ in rows) + gap
    if width is not None and width < NARROW and left > 12:
        return "\n".join(f"{name}\n{_folded('    ' + text, width, '    ')}" for name, text in rows)
    lines = (f"{name:<{left}}{text}".rstrip() for name, text in rows)
    if width is None:
        return "\n".join(lines)
    return "\n".join(_folded(line, width, " " * left) for line in lines)


def _folded(line: str, width: int, indent: str) -> str:
    return textwrap.fill(
        line,
        max(width, len(indent) + 8),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))]


class WordWrap:
    """Writes text that arrives in pieces, with line breaks between words at the right edge.

    A word is held back until it is complete or fills a line. Line breaks and blanks are kept,
    except for the blanks where a line is broken.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int]) -> None:
        self.write, self._width = write, width
        self._column = 0
        self._blanks = self._word = ""

    @property
    def at_line_start(self) -> bool:
        return not (self._column or self._blanks or self._word)

    def push(self, text: str) -> None:
        output = ""
        for part in _PARTS.findall(text):
            if part == "\n":
                output += self._taken() + self._blanks + "\n"
                self._column, self._blanks = 0, ""
            elif part.isspace():
                output += self._taken()
                self._blanks += part
            elif len(part) == 1 and _cells(part) == 2:
                output += self._taken()
                self._word = part
                output += self._taken()
            else:
                self._word += part
                if _cells(self._word) >= self._width():
                    output += self._taken()
        if output:
            self.write(output)

    def finish(self) -> None:
        """Write what is held back."""
        if output := self._taken() + self._blanks:
            self.write(output)
        self._column += len(self._blanks)
        self._blanks = ""

    def _taken(self) -> str:
        """The held word, after the blanks before it or a line break."""
        if not self._word:
            return ""
        before, word, width = self._blanks, self._word, self._width()
        self._blanks = self._word = ""
        cells = len(before.expandtabs(8)) + _cells(word)
        if self._column and self._column + cells > width:
            before, cells, self._column = "\n", _cells(word), 0
        self._column += cells
        if self._column > width:  # the terminal breaks the word
            self._column = self._column % width or width
        return before + word


def _cells(text: str) -> int:
    """The columns that a terminal uses for the text."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
