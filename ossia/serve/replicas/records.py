"""The responses that all replicas keep together: the one store, and how a replica reaches it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ossia.serve.responses.store import Kept, ResponseStore


class SharedRecords:
    """A store of responses for several replicas. run: the process of a replica that a call is from.
    Safe to use in any thread.
    """

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}

    def key(self) -> bytes:
        return self._store.key

    def put(self, kept: Kept, running: bool, run: str) -> None:
        id = kept.response["id"]
        with self._lock:
            if running:
                self._running[id] = run
        try:
            self._store.put(kept, running=running)
        finally:
            with self._lock:
                if not running:
                    self._running.pop(id, None)

    def get(self, id: str) -> Kept | None:
        return self._store.get(id)

    def delete(self, id: str) -> bool:
        return self._store.delete(id)

    def size(self) -> tuple[int, int]:
        return self._store.size()

    def running_in(self, id: str) -> str | None:
        """The run in which a response is being made in the background; None if it is not."""
        with self._lock:
            return self._running.get(id)

    def lost(self, run: str) -> None:
        """Have the responses fail that ran in a process that has died."""
        with self._lock:
            ids = [id for id, other in self._running.items() if other == run]
            for id in ids:
                del self._running[id]
        for id in ids:
            self._store.fail(id)

    def close(self) -> None:
        self._store.close()


class RemoteStore:
    """The store as a replica uses it. call: has a method of the records called, and waits."""

    def __init__(self, call: Callable[..., Any], run: str) -> None:
        self._call, self._run = call, run
        self.key: bytes = call("key")

    def put(self, kept: Kept, *, running: bool = False) -> None:
        self._call("put", kept, running, self._run)

    def get(self, id: str) -> Kept | None:
        return self._call("get", id)

    def delete(self, id: str) -> bool:
        return self._call("delete", id)

    def size(self) -> tuple[int, int]:
        """Nothing: the front end says it once for all replicas."""
        return 0, 0
