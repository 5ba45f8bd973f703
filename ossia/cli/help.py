"""Commands whose help also fits a narrow terminal, each option's text below its name, and breaks
no line within the name of an option.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ossia.cli.text import NARROW, columns

# typer carried click's classes at first and its own copies later, and exports neither.
_Context: Any = TyperCommand.context_class

_HYPHEN = "\ue000"  # at which no line is broken


class _Formatter(_Context.formatter_class):
    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        rows = [(name, re.sub(r"--[\w-]+", _kept_whole, text)) for name, text in rows]
        super().write_dl(rows, 4 if self.width < NARROW else col_max, col_spacing)
        self.buffer = [piece.replace(_HYPHEN, "-") for piece in self.buffer]


def _kept_whole(option: re.Match[str]) -> str:
    return option[0].replace("-", _HYPHEN)


class _OurContext(_Context):
    formatter_class = _Formatter


class Command(TyperCommand):
    """A command."""

    context_class = _OurContext


class Group(TyperGroup):
    """A command with subcommands."""

    context_class = _OurContext


def width() -> int | None:
    """The width of help on a narrow terminal; None elsewhere. click would not go below 50."""
    found = columns(sys.stdout)
    return found if found is not None and found < NARROW else None
