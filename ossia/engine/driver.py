"""A driver of an engine, for any number of threads: they submit requests, and the outputs are
delivered to them by the one thread that owns the engine (`ossia.engine.worker`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ossia.engine.engine import EngineStats
from ossia.engine.request import Request
from ossia.engine.worker import Deliver, R, Steps, Ticket, Worker
from ossia.errors import Busy, DeviceLost


class QueueFull(Busy):
    """As many requests are unfinished as the driver accepts; try again later."""


@dataclass(frozen=True)
class DriverStats:
    """A driver's figures. unfinished: requests that were submitted and have not ended, at most
    max_queue of them. engine: the engine's own figures, None once it is closed; they may be of
    different moments of a step. fault: what ended the engine, if it was not closed.
    """

    unfinished: int
    max_queue: int
    engine: EngineStats | None
    fault: DeviceLost | None = None


class Driver:
    """Runs an engine in a thread of its own; its methods may be called in any thread.

    At most `max_queue` requests may be unfinished, running and waiting. A driver that is dropped,
    and each one when the interpreter exits, is closed.
    """

    def __init__(self, engine: Steps, max_queue: int = 1024) -> None:
        self.config = engine.config
        self._worker = Worker(engine, max_queue)
        weakref.finalize(self, self._worker.stop).atexit = False

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Queue a request. `deliver` gets each of its outputs on the engine's thread, up to one
        with a finish reason or a Failure; if it raises, its request is cancelled.

        Raises QueueFull, and OssiaError for a request that the engine can never serve and from a
        closed driver.
        """
        if not (tickets := self.submit_some([(request, deliver)])):
            raise QueueFull(
                f"{self._worker.max_queue} requests are unfinished, which is the limit (max_queue)"
            )
        return tickets[0]

    def submit_some(self, requests: Sequence[tuple[Request, Deliver]]) -> list[Ticket]:
        """Queue as many of these as fit, in order; all that are queued enter the same step. Raises
        OssiaError as `submit`, having queued none.
        """
        for request, _ in requests:
            self._worker.check(request)
        return self._worker.submit([Ticket(*item) for item in requests])

    def cancel(self, ticket: Ticket) -> None:
        """End a request before its next output; nothing happens if it has ended. Never waits, and
        is safe in signal handlers and destructors.
        """
        self._worker.cancel(ticket)

    def call(self, work: Callable[[Steps], R]) -> Future[R]:
        """Have `work` done with the engine on its thread, between two steps; requests wait
        meanwhile. Raises OssiaError from a closed driver.
        """
        return self._worker.call(work)

    def stats(self) -> DriverStats:
        """The figures of this moment, without waiting for a step."""
        worker = self._worker
        return DriverStats(worker.unfinished, worker.max_queue, worker.engine_stats(), worker.fault)

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more requests, and wait until all have ended; False if `timeout` seconds were
        not enough.
        """
        return self._worker.drain(timeout)

    def close(self) -> None:
        """Accept no more requests, fail those that are unfinished, and release the engine. Waits
        for the thread to end; a long step is aborted.
        """
        self._worker.close()
