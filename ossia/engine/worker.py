"""The thread that owns an engine. It starts with the first request, sleeps while there is none, and
survives whatever a step or a receiver raises. A fork finds the engine between two steps, so a child
process can go on with its copy; the requests that were running stay with the parent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

import torch

from ossia.config import ModelConfig
from ossia.engine import forks
from ossia.engine.engine import EngineStats
from ossia.engine.request import Failure, Output, Request
from ossia.errors import DeviceLost, OssiaError

Deliver = Callable[[Output], None]
R = TypeVar("R")

# A step that takes longer is not waited for when the engine is closed.
_GRACE_SECONDS = 0.2

_log = logging.getLogger(__name__)


class Steps(Protocol):
    """What a driver needs of an engine. `check` and `stats` may be called in any thread."""

    config: ModelConfig

    @property
    def has_work(self) -> bool: ...
    def check(self, request: Request) -> None: ...
    def add(self, request: Request) -> int: ...
    def step(self) -> Sequence[Output]: ...
    def abort(self, request_id: int) -> None: ...
    def stats(self) -> EngineStats: ...


class Ticket:
    """A submitted request; `Driver.cancel` takes it."""

    __slots__ = ("cancelled", "deliver", "ended", "id", "process", "request")

    def __init__(self, request: Request, deliver: Deliver) -> None:
        self.request, self.deliver = request, deliver
        self.id = -1  # the engine's, once it has the request
        self.cancelled = self.ended = False
        self.process = os.getpid()

    @property
    def lost(self) -> bool:
        """Whether it was submitted by the process that this one was forked from, so that nothing
        will be delivered here.
        """
        return self.process != os.getpid()


class _Stopped(BaseException):
    """Raised in the engine's thread, in the middle of a step, to end it."""


class Worker:
    """The thread and what it shares with others; it must not keep the Driver alive."""

    def __init__(self, engine: Steps, max_queue: int) -> None:
        self.max_queue = max_queue
        self._engine: Steps | None = engine
        self._closed = self._forked = False
        self.fault: DeviceLost | None = None  # what ended the thread
        self._unfinished: dict[int, Ticket] = {}  # by the engine's ids
        self._abandoned: list[int] = []  # in the engine, by the process that this was forked from
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        """Reset to no thread and nothing submitted: on construction, and in a forked child."""
        self._lock = threading.Lock()  # of `_closed`, `_thread` and `_submitted`
        self._turn = threading.Lock()  # held by the thread except while it sleeps
        self._gate = threading.Lock()  # passed before each turn, so that a fork can have the next
        self._fate = threading.Lock()  # of `_interruptible`
        self._interruptible = True
        self._thread: threading.Thread | None = None
        self._torch_threads = 0
        self._stops = False
        # What the thread is to do before its next step; put() is safe anywhere.
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._submitted = self._ended = 0  # requests; only the thread writes the second
        self._quiet = threading.Event()  # no request is unfinished
        self._quiet.set()
        self._abandoned += self._unfinished
        self._unfinished = {}

    # Called in any thread.

    def check(self, request: Request) -> None:
        engine = self._engine
        if engine is None:
            raise self._refusal()
        engine.check(request)

    def submit(self, tickets: list[Ticket]) -> list[Ticket]:
        with self._lock:
            if self._closed or forks.exiting():
                raise self._refusal()
            tickets = tickets[: max(0, self.max_queue - self.unfinished)]
            if tickets:
                self._start()
                self._submitted += len(tickets)
                self._quiet.clear()
                self._commands.put(partial(self._add, tickets))
        return tickets

    def _start(self) -> None:
        """Have the thread, with as many of torch's threads as this one has; with the lock held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ossia-engine", daemon=True)
            thread.start()
            self._thread = thread
        # torch.set_num_threads affects only the calling thread: the engine's repeats it.
        self._torch_threads = torch.get_num_threads()

    def call(self, work: Callable[[Steps], R]) -> Future[R]:
        future: Future[R] = Future()
        with self._lock:
            if self._closed or forks.exiting():
                raise self._refusal()
            self._start()
            self._commands.put(partial(self._work, work, future))
        return future

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and have not ended."""
        return self._submitted - self._ended

    def engine_stats(self) -> EngineStats | None:
        engine = self._engine
        return None if engine is None else engine.stats()

    def cancel(self, ticket: Ticket) -> None:
        if not (ticket.cancelled or ticket.ended):
            ticket.cancelled = True
            self._commands.put(partial(self._drop, ticket))

    def drain(self, timeout: float | None) -> bool:
        if threading.current_thread() is self._thread:
            raise RuntimeError("the engine's own thread cannot wait for its requests")
        with self._lock:
            self._closed = True
        return self._quiet.wait(timeout)

    def stop(self) -> None:
        """Have the thread end after its step; waits for nothing."""
        self._closed = True
        self._commands.put(self._stop)

    def close(self) -> None:
        with self._lock:  # no thread starts after this
            self._closed = True
            thread = self._thread
        self._commands.put(self._stop)
        if thread is None:
            self._engine = None
        elif thread is not threading.current_thread():
            thread.join(_GRACE_SECONDS)
            self._interrupt(thread)
            thread.join()

    def _interrupt(self, thread: threading.Thread) -> None:
        """Raise _Stopped in the thread if it is still at work."""
        with self._fate:
            if thread.is_alive() and self._interruptible:
                self._interruptible = False
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped)
                )

    def hold(self) -> None:
        """Before a fork: wait for the end of the thread's turn, and keep it from the next."""
        self._gate.acquire()
        if threading.current_thread() is not self._thread:  # a receiver may fork
            self._turn.acquire()

    def hold_others(self) -> None:
        """Once all workers are held: until then, one's receiver may submit to another."""
        self._lock.acquire()

    def release(self) -> None:
        self._lock.release()
        if threading.current_thread() is not self._thread:
            self._turn.release()
        self._gate.release()

    def begin_in_child(self) -> None:
        self._forked = True
        self._begin()

    # In the thread.

    def _run(self) -> None:
        try:
            self._serve()
            with self._fate:
                self._interruptible = False
            time.sleep(0)  # an interrupt that is on its way arrives here at the latest
        except _Stopped:
            pass
        finally:
            self._end()

    def _serve(self) -> None:
        assert self._engine is not None
        while self._abandoned:
            self._abort(self._abandoned.pop())
        while not self._stops:
            command = None if self._unfinished else self._commands.get()
            with self._gate:
                self._turn.acquire()
            try:
                self._obey(command)
                if self._unfinished and not self._stops:
                    for output in self._step(self._engine):
                        if (ticket := self._unfinished.get(output.request_id)) is not None:
                            self._hand_over(ticket, self._explained(output))
            finally:
                self._turn.release()

    def _obey(self, command: Callable[[], None] | None) -> None:
        """Do what was asked for until now."""
        if command is not None:
            command()
        while not self._commands.empty():
            self._commands.get()()

    def _stop(self) -> None:
        self._stops = True

    def _end(self) -> None:
        """Fail what is unfinished, and release the engine."""
        self._stop()
        with self._lock:
            self._closed = True
        for ticket in list(self._unfinished.values()):
            self._hand_over(ticket, Failure(ticket.id, self._refusal()))
        self._obey(None)
        self._engine = None

    def _add(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            if ticket.cancelled:
                self._ended += 1
                self._rest()
                continue
            try:
                if self._stops or self._engine is None:
                    raise self._refusal()
                ticket.id = self._engine.add(ticket.request)
            except Exception as error:
                self._hand_over(ticket, Failure(ticket.id, error))
            else:
                self._unfinished[ticket.id] = ticket

    def _drop(self, ticket: Ticket) -> None:
        if self._unfinished.get(ticket.id) is ticket:
            del self._unfinished[ticket.id]
            self._abort(ticket.id)
            self._ended += 1
            self._rest()

    def _work(self, work: Callable[[Steps], R], future: Future[R]) -> None:
        """Do it now, between two steps."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._stops or self._engine is None:
                raise self._refusal()
            self._match_threads()
            future.set_result(work(self._engine))
        except _Stopped:
            future.set_exception(self._refusal())
            raise
        except Exception as error:
            future.set_exception(error)

    def _match_threads(self) -> None:
        if torch.get_num_threads() != self._torch_threads:
            torch.set_num_threads(self._torch_threads)

    def _step(self, engine: Steps) -> Sequence[Output]:
        """The outputs of a step; if it raises, failures of all that the engine has."""
        self._match_threads()
        try:
            assert engine.has_work, "requests are unfinished, and the engine has no work"
            return engine.step()
        except Exception as error:
            if isinstance(error, DeviceLost):
                self.fault = error
                self._stop()
                _log.error("%s", error)
            failed = list(self._unfinished)
            for number in failed:
                self._abort(number)
            return [Failure(number, error) for number in failed]

    def _explained(self, output: Output) -> Output:
        """In a forked child, a failure whose error says what to do: CUDA, for one, never works."""
        if not self._forked or not isinstance(output, Failure):
            return output
        if isinstance(output.error, OssiaError):
            return output
        reason = str(output.error).partition("\n")[0]
        error = OssiaError(
            f"the model does not run in this forked process ({reason}): load it here, or start the "
            "process by spawning"
        )
        return Failure(output.request_id, error)

    def _hand_over(self, ticket: Ticket, output: Output) -> None:
        if isinstance(output, Failure) or output.finish_reason is not None:
            ticket.ended = True
            self._unfinished.pop(ticket.id, None)
            self._ended += 1
        try:
            if not ticket.cancelled:
                ticket.deliver(output)
        except _Stopped:
            raise
        except BaseException as error:
            _log.warning("request %d is cancelled: its receiver raised %r", ticket.id, error)
            ticket.cancelled = True
            self._drop(ticket)
        if ticket.ended:
            self._rest()

    def _abort(self, number: int) -> None:
        try:
            if self._engine is not None:
                self._engine.abort(number)
        except Exception:
            _log.exception("request %d could not be aborted", number)

    def _refusal(self) -> OssiaError:
        return self.fault or OssiaError(
            "the model is closed: it takes no more requests, and ends those it had"
        )

    def _rest(self) -> None:
        """Let those who drain know if nothing is unfinished."""
        if self._ended == self._submitted:
            with self._lock:
                if self._ended == self._submitted:
                    self._quiet.set()
