"""Work that Ctrl-C or SIGTERM stops at a safe point."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit code after Ctrl-C
USER_ERROR = 2  # the exit code for bad input


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a signal has arrived; a second signal takes effect at
    once.
    """
    interrupted = []
    previous = {}

    def stop(number: int, _: Any) -> None:
        interrupted.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield lambda: bool(interrupted)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
