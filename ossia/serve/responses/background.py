"""Responses that no connection waits for: they run, are followed, and can be cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ossia.serve.errors import ApiError
from ossia.serve.responses.answer import Answer, Event
from ossia.serve.responses.store import Kept, Store
from ossia.serve.service import Running
from ossia.serve.stream import named_event

_log = logging.getLogger(__name__)

_STOPPED = ApiError(500, "the server stopped before the response was complete")


class Background:
    """The responses that run. tasks: where their tasks stand until they end."""

    def __init__(self, store: Store, tasks: set[asyncio.Task[Any]]) -> None:
        self._store, self._tasks = store, tasks
        self._runs: dict[str, _Run] = {}

    async def start(self, answer: Answer, running: Running) -> None:
        """Have a response run, which is kept from now on."""
        run = _Run(answer, self._store)
        try:
            await run.keep()
        except BaseException:
            async with running.held():
                raise
        task = run.task = asyncio.create_task(run.work(running))
        self._runs[answer.asked.id] = run
        self._tasks.add(task)

        def ended(_: object) -> None:
            self._tasks.discard(task)
            del self._runs[answer.asked.id]

        task.add_done_callback(ended)

    def count(self) -> int:
        """How many run."""
        return len(self._runs)

    async def find(self, id: str) -> Kept | None:
        """A response as it is now, running or kept."""
        run = self._runs.get(id)
        if run is not None:
            return Kept(run.answer.response(), run.answer.asked.items)
        kept = await asyncio.to_thread(self._store.get, id)
        if kept is not None and kept.response["status"] in ("queued", "in_progress"):
            error = {"code": "server_error", "message": "the response could not be kept to its end"}
            return replace(kept, response=kept.response | {"status": "failed", "error": error})
        return kept

    async def cancel(self, id: str) -> None:
        """End a response if it runs; what was made of it so far is kept."""
        run = self._runs.get(id)
        if run is not None and run.task is not None:
            run.cancelled = True
            if not run.answer.ended:
                run.task.cancel()
            await asyncio.wait([run.task])

    async def follow(self, id: str, after: int) -> AsyncIterator[bytes] | None:
        """The events of a running or kept response, those after number `after`; None if it was not
        made in the background.
        """
        run = self._runs.get(id)
        if run is not None:
            return run.follow(after + 1)
        kept = await self.find(id)
        if kept is None or not kept.response["background"]:
            return None
        if kept.events is None:  # whose process died
            last = {"type": "response.failed", "response": kept.response}
            return _replayed(named_event(last | {"sequence_number": after + 1}), 0)
        return _replayed(kept.events, after + 1)


class _Run:
    """One response that runs, and its events so far."""

    def __init__(self, answer: Answer, store: Store) -> None:
        self.answer, self._store = answer, store
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self._log: list[bytes] = []  # the place of an event is its number
        self._ended = False
        self._more = asyncio.Event()  # another one for each wait

    async def keep(self, last: Event | None = None) -> None:
        """Keep the response as it is; with its last event, as it will stay."""
        events = b"".join([*self._log, named_event(last)]) if last is not None else None
        kept = Kept(self.answer.response(), self.answer.asked.items, events)
        await asyncio.to_thread(self._store.put, kept, running=last is None)

    async def work(self, running: Running) -> None:
        """Make the response, and keep how it ended."""
        try:
            if (last := await self._make(running)) is not None:
                try:
                    await self.keep(last)
                except Exception as error:  # those who follow it are told all the same
                    _log.error("%s: %s", self.answer.asked.id, error)
                self._note(last)
        finally:
            self._ended = True
            self._more.set()

    async def _make(self, running: Running) -> Event | None:
        """The last event of a response that did not come to its end; None of one that did."""
        try:
            async with running.held():
                async for event in self.answer.events(running, self.keep):
                    self._note(event)
        except asyncio.CancelledError:
            if self.answer.ended:  # and is being kept
                raise
            return self.answer.cancelled() if self.cancelled else self.answer.failed(_STOPPED)
        except Exception as error:
            return self.answer.failed(error)

    def _note(self, event: Event) -> None:
        self._log.append(named_event(event))
        self._more.set()
        self._more = asyncio.Event()

    async def follow(self, number: int) -> AsyncIterator[bytes]:
        """The events from that number on."""
        while True:
            while number < len(self._log):
                yield self._log[number]
                number += 1
            if self._ended:
                return
            await self._more.wait()


async def _replayed(events: bytes, number: int) -> AsyncIterator[bytes]:
    for event in events.split(b"\n\n")[number:-1]:
        yield event + b"\n\n"
