"""How far a long command is: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ossia.errors import shortened

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_SECONDS = 10.0  # between two lines


class Progress(Protocol):
    """Shows how much of a command is done."""

    def update(self, done: int, text: str) -> None:
        """`done` of the whole; `text` says what is being done, or how."""
        ...

    def say(self, line: str) -> None:
        """Print a line that stays."""
        ...

    def change_pace(self) -> None:
        """Estimate the time that is left from the next update on: more is done at once now."""
        ...


@contextmanager
def progress(total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """On stderr. `total` and `done` count `unit`s, such as steps."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(total, unit)
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    room = console.width - len(f"{total}/{total} {unit} 0:00:00 ")
    spare = room - 40
    columns = [BarColumn(min(spare, 40))] if spare >= 8 else []
    room -= min(spare, 40) + 1 if columns else 0
    with Bars(
        *columns,
        TextColumn(f"{{task.completed}}/{{task.total}} {unit}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
    ) as bars:
        yield _Bar(bars, bars.add_task("", total=total, completed=done), room)


class _Bar:
    def __init__(self, bars: Bars, task: TaskID, room: int) -> None:
        self._bars, self._task, self._room = bars, task, max(4, room)

    def update(self, done: int, text: str) -> None:
        # rich would shorten the other columns as well
        self._bars.update(self._task, completed=done, description=shortened(text, self._room))

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False)

    def change_pace(self) -> None:
        self._bars.reset(self._task, completed=int(self._bars.tasks[0].completed))


class Silent:
    """Shows nothing."""

    def update(self, done: int, text: str) -> None: ...

    def say(self, line: str) -> None: ...

    def change_pace(self) -> None: ...


class Lines:
    """Progress in a log: a line every ten seconds, with the time that is left at the pace since the
    first update; what comes before, such as the start of processes, is not repeated.
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._unit, self._clock = total, unit, clock
        self._last = clock()
        self._paced: tuple[float, int] | None = None  # the first update: when, and what was done

    def update(self, done: int, text: str) -> None:
        now = self._clock()
        start, first = self._paced = self._paced or (now, done)
        if now - self._last < _SECONDS:
            return
        self._last = now
        line = f"{done:,}/{self._total:,} {self._unit} ({done / self._total:.0%})"
        if done > first:
            line += f", {_duration((now - start) / (done - first) * (self._total - done))} left"
        self.say(f"{line}, {text}" if text else line)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def change_pace(self) -> None:
        self._paced = None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
