"""A replica's side: the application over its model, reached by calls and not through a socket."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from urllib.parse import unquote

from ossia.api import LLM
from ossia.serve.gate import Asgi, Message
from ossia.serve.replicas.replica import Asked, Beat, ReplicaUnreachable

BEAT_SECONDS = 1.0
_MOST_LINES = 100  # of the log, between two beats


class Worker:
    """An application over a model. run: the name of this process. cache_tokens: what the model's
    prefix cache holds at the most.
    """

    def __init__(self, app: Asgi, llm: LLM, run: str, cache_tokens: int) -> None:
        self._app, self._llm, self._run, self._cache_tokens = app, llm, run, cache_tokens
        self._log = _Lines()
        logging.getLogger("ossia").addHandler(self._log)

    def healthy(self) -> bool:
        """Whether the engine still runs."""
        return self._llm.stats().engine is not None

    async def beats(self) -> AsyncGenerator[Beat]:
        """A beat each second. Raises ReplicaUnreachable once the engine has ended."""
        while True:
            stats = self._llm.stats()
            if stats.engine is None:  # with no queue, it would seem to have room
                raise ReplicaUnreachable(str(stats.fault or "the engine has ended"))
            lines = tuple(self._log.take())
            yield Beat(self._run, stats.unfinished, stats.max_queue, self._cache_tokens, lines)
            await asyncio.sleep(BEAT_SECONDS)

    async def answer(self, asked: Asked) -> AsyncGenerator[list[Message]]:
        """The messages of the application's answer, all that are there at a time. It is cancelled
        if this iterator is closed.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [{"type": "http.request", "body": asked.body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            return await asyncio.Future()  # who hangs up has this cancelled

        task = asyncio.create_task(_run(self._app, _scope(asked), receive, messages))
        try:
            going = True
            while going:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                going = batch[-1] is not None
                if told := [message for message in batch if message is not None]:
                    yield told
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _run(
    app: Asgi, scope: Message, receive: object, messages: asyncio.Queue[Message | None]
) -> None:
    try:
        await app(scope, receive, messages.put)  # type: ignore[arg-type]
    finally:
        messages.put_nowait(None)


def _scope(asked: Asked) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(asked.path.decode("latin-1")),
        "raw_path": asked.path,
        "query_string": asked.query,
        "root_path": "",
        "headers": [*asked.headers],
        "client": None,
        "server": None,
    }


class _Lines(logging.Handler):
    """The latest warnings, each with its level, until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[tuple[int, str]] = deque(maxlen=_MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, self.format(record)))

    def take(self) -> list[tuple[int, str]]:
        taken = []
        while self._lines:
            taken.append(self._lines.popleft())
        return taken
