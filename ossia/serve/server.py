"""The process that serves: its socket, its log, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ossia.errors import OssiaError
from ossia.serve.gate import Asgi
from ossia.serve.options import ServeOptions


def listen(options: ServeOptions) -> socket.socket:
    """A socket that takes connections. Raises OssiaError for an address that cannot be had."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]  # Python adds the address
        raise OssiaError(
            f"cannot listen on {options.host} port {options.port}: {why}; "
            "choose another with --host and --port"
        ) from error


def url(server: socket.socket) -> str:
    """Where clients on this machine find a listening socket."""
    host, port = server.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(server: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(server.getsockname()[0]).is_loopback


_TOLD_SECONDS = 2.0  # for which a server whose GPU is lost says so to those who ask


def serve(
    app: Asgi,
    server: socket.socket,
    drain_seconds: float,
    tasks: Collection[asyncio.Task[Any]],
    fault: Callable[[], Exception | None] = lambda: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C. Then no more connections are taken, and answers and
    `tasks` that run may end within `drain_seconds`; a second signal ends them at once.

    fault: why the server cannot go on, if so. It then ends as if asked to, and raises that.
    """
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # ASGI, of looser types than uvicorn's
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    _Server(config, tasks, fault).run(sockets=[server])
    if (error := fault()) is not None:
        raise error


class _Server(uvicorn.Server):
    """uvicorn's, which ends the process normally after a signal that it was asked to end by, and
    waits for tasks that no connection waits for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        tasks: Collection[asyncio.Task[Any]],
        fault: Callable[[], Exception | None],
    ) -> None:
        super().__init__(config)
        self._tasks, self._fault = tasks, fault
        self._ends: float | None = None  # when it does, after a fault

    async def on_tick(self, counter: int) -> bool:
        if self._ends is None and self._fault() is not None:
            self._ends = time.monotonic() + _TOLD_SECONDS
        if self._ends is not None and time.monotonic() >= self._ends:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            self.server_state.tasks.add(task)
            task.add_done_callback(self.server_state.tasks.discard)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._end) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def log_to_stderr(as_json: bool) -> None:
    """Send what ossia and uvicorn log to stderr, a line each, or a JSON object each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(message)s"))
    for name in ("ossia", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """A record as a JSON object: time, level and message, and what a request's record adds."""

    FIELDS = ("method", "path", "status", "seconds", "request_id")

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: getattr(record, key) for key in self.FIELDS if hasattr(record, key)}
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
