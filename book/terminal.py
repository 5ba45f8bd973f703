"""A terminal's screen: what stands on it after a program's output."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby

# An escape sequence, or one other character.
_PIECES = re.compile(
    r"\x1b\[(?P<marks>[0-9;?]*)(?P<kind>[@-~])|\x1b\][^\x07]*\x07|\x1b[=>]|(?P<character>[\s\S])"
)


@dataclass(frozen=True)
class Style:
    """How a character is written. colour: 0 to 7 as ANSI numbers them; None is the text's own."""

    bold: bool = False
    dim: bool = False
    colour: int | None = None


_PLAIN = Style()
_Cell = tuple[str, Style]
_BLANK: _Cell = (" ", _PLAIN)


class Screen:
    """A grid of characters and a cursor, moved by a program's output."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._lines: list[list[_Cell]] = [self._empty() for _ in range(rows)]
        self._x = self._y = 0
        self._style, self._wraps = _PLAIN, True

    def feed(self, output: str) -> None:
        """Take the output. Raises ValueError for a sequence that is not known."""
        for piece in _PIECES.finditer(output):
            if (character := piece["character"]) is not None:
                self._write(character)
            elif piece["kind"] is not None:
                self._obey(piece["marks"], piece["kind"])

    @property
    def lines(self) -> list[tuple[tuple[str, Style], ...]]:
        """Each row as runs of one style, without blanks at its end."""
        return [self._runs(line) for line in self._lines]

    def _empty(self) -> list[_Cell]:
        return [_BLANK] * self.columns

    @staticmethod
    def _runs(line: list[_Cell]) -> tuple[tuple[str, Style], ...]:
        end = next((i for i in range(len(line), 0, -1) if line[i - 1][0] != " "), 0)
        groups = groupby(line[:end], key=lambda cell: cell[1])
        return tuple(
            ("".join(character for character, _ in cells), style) for style, cells in groups
        )

    def _write(self, character: str) -> None:
        match character:
            case "\r":
                self._x = 0
            case "\n":
                self._down()
            case "\b":
                self._x = max(0, self._x - 1)
            case "\x07":
                pass
            case _:
                if self._x == self.columns:  # the line is full, and the next character begins one
                    if self._wraps:
                        self._x = 0
                        self._down()
                    else:
                        self._x -= 1
                self._lines[self._y][self._x] = character, self._style
                self._x += 1

    def _down(self) -> None:
        if self._y < self.rows - 1:
            self._y += 1
        else:
            self._lines = [*self._lines[1:], self._empty()]

    def _obey(self, marks: str, kind: str) -> None:
        if marks.startswith("?"):  # modes of the terminal, of which only wrapping is visible
            self._wraps = kind == "h" if marks == "?7" else self._wraps
            return
        numbers = [int(mark or 0) for mark in marks.split(";")]
        count = max(1, numbers[0])
        match kind:
            case "m":
                self._dress(numbers)
            case "A":
                self._y = max(0, self._y - count)
            case "B":
                self._y = min(self.rows - 1, self._y + count)
            case "C":
                self._x = min(self.columns - 1, self._x + count)
            case "D":
                self._x = max(0, self._x - count)
            case "G":
                self._x = min(self.columns, count) - 1
            case "H":
                self._y = min(self.rows, count) - 1
                self._x = min(self.columns, max(1, numbers[1] if len(numbers) > 1 else 1)) - 1
            case "J":
                self._clear(numbers[0])
            case "K":
                start = 0 if numbers[0] else self._x
                end = self._x + 1 if numbers[0] == 1 else self.columns
                self._lines[self._y][start:end] = [_BLANK] * (end - start)
            case _:
                raise ValueError(f"a terminal's sequence {marks}{kind} is not known")

    def _clear(self, which: int) -> None:
        if which == 0:
            self._obey("0", "K")
            self._lines[self._y + 1 :] = [self._empty() for _ in self._lines[self._y + 1 :]]
        else:
            self._lines = [self._empty() for _ in self._lines]

    def _dress(self, numbers: list[int]) -> None:
        for number in numbers:
            match number:
                case 0:
                    self._style = _PLAIN
                case 1:
                    self._style = replace(self._style, bold=True)
                case 2:
                    self._style = replace(self._style, dim=True)
                case 22:
                    self._style = replace(self._style, bold=False, dim=False)
                case 39:
                    self._style = replace(self._style, colour=None)
                case _ if 30 <= number <= 37:
                    self._style = replace(self._style, colour=number - 30)
                case _ if 90 <= number <= 97:
                    self._style = replace(self._style, colour=number - 90)
                case _:
                    raise ValueError(f"a terminal's style {number} is not known")
