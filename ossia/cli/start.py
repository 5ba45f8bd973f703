"""The entry point of the command line. Little is imported here, so that Ctrl-C is silent from the
first moment on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # the exit code after Ctrl-C


def run() -> None:
    """Run the command line and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    from ossia.cli.main import main

    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late: what follows cannot be interrupted
    _leave(code)


def _leave(code: int) -> None:
    """Exit as `sys.exit` does, but without taking torch's thousands of modules apart, which would
    take a quarter of a second.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # of a pipe that nobody reads
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but end the process while a module is imported. Raised there, in the
    middle of native initialisation, it could abort the process.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
