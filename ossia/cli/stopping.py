"""Ctrl-C and SIGTERM: what they end, and when."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ossia.cli.start import INTERRUPTED
from ossia.cli.text import wrapped

# Exit codes: for bad input, and for a GPU that stopped.
USER_ERROR, DEVICE_LOST = 2, 1

_SHOW_CURSOR = b"\x1b[?25h"  # which a spinner hides


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process here and now, silently.

    For work that leaves nothing behind, such as loading a model: an exception in the middle of
    native code, of a half-made module or of a callback that cannot raise may end in an abort or a
    traceback.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR + b"\n")
        os._exit(INTERRUPTED)

    if not _takes_interrupts():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _takes_interrupts() -> bool:
    """Whether Ctrl-C may be handled: not outside the main thread, nor where it is ignored, as in a
    program that a shell started in the background.
    """
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and callable(signal.getsignal(signal.SIGINT))


@contextmanager
def until_interrupted(when: str = "after this step") -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a signal has arrived, which is announced at once with
    when the work stops; a second signal takes effect at once.
    """
    interrupted = []
    previous = {}

    def stop(number: int, _frame: FrameType | None) -> None:
        interrupted.append(number)
        signal.signal(number, previous[number])
        text = wrapped(f"stopping {when}; a second Ctrl-C does not wait for it", sys.stderr)
        os.write(2, f"\n{text}\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield lambda: bool(interrupted)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
