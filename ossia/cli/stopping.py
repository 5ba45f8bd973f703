"""Work that Ctrl-C or SIGTERM ends at its next good moment, not where it falls."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit code
USER_ERROR = 2  # and that of bad input


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the first signal has come; a second one does not wait."""
    interrupted = []
    previous = {}

    def stop(number: int, frame: Any) -> None:
        interrupted.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield lambda: bool(interrupted)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
