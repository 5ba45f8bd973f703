"""Threads that own an engine, at forks and at the end of the interpreter: a fork finds each of them
between two steps, and the interpreter ends them before it ends.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Protocol


class Owner(Protocol):
    """A thread that owns an engine, as `ossia.engine.worker.Worker`."""

    def hold(self) -> None: ...
    def hold_others(self) -> None: ...
    def release(self) -> None: ...
    def begin_in_child(self) -> None: ...
    def close(self) -> None: ...


_all: weakref.WeakSet[Owner] = weakref.WeakSet()
_all_lock = threading.Lock()
_exiting = False
_held: list[Owner] = []


def register(owner: Owner) -> None:
    """From now on; it is forgotten with its last reference."""
    with _all_lock:
        _all.add(owner)


def exiting() -> bool:
    """Whether the interpreter ends, so that no thread may start any more."""
    return _exiting


@atexit.register
def _close_all() -> None:
    """End the threads while they can still end: later, one that comes back from native code would
    abort the process.
    """
    global _exiting
    _exiting = True
    with _all_lock:
        owners = list(_all)
    for owner in owners:
        owner.close()


def _before_fork() -> None:
    _all_lock.acquire()
    _held[:] = _all
    for owner in _held:
        owner.hold()
    for owner in _held:
        owner.hold_others()


def _after_fork_in_parent() -> None:
    for owner in _held:
        owner.release()
    _held.clear()
    _all_lock.release()


def _after_fork_in_child() -> None:
    for owner in _held:
        owner.begin_in_child()
    _held.clear()
    _all_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
