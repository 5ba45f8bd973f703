"""Responses kept in SQLite: one that was answered is on the disk, even if the process is killed."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.serve.responses.items import Items

KEPT_SECONDS = 30 * 24 * 3600
MOST_RESPONSES = 10_000  # of which the oldest go first
MOST_BYTES = 2**30
WAIT_SECONDS = 5.0  # for another process, which is ending, to give the file up

_SCHEMA = (
    "PRAGMA locking_mode = EXCLUSIVE",  # a second server would take this one's responses for dead
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 67108864",
    "CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, created REAL NOT NULL, bytes "
    "INTEGER NOT NULL, running INTEGER NOT NULL, response TEXT NOT NULL, input TEXT NOT NULL, "
    "events BLOB)",
    "CREATE INDEX IF NOT EXISTS by_age ON responses (created, bytes)",
    "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
)


@dataclass(frozen=True)
class Kept:
    """A response, the items that it answers, and the events that told of it as they were sent, if
    it ran in the background.
    """

    response: dict[str, Any]
    input: Items
    events: bytes | None = None


class Store(Protocol):
    """Where responses are kept: here, or in another process for several servers. key: that of
    reasoning that clients keep.
    """

    key: bytes

    def put(self, kept: Kept, *, running: bool = False) -> None: ...
    def get(self, id: str) -> Kept | None: ...
    def delete(self, id: str) -> bool: ...
    def size(self) -> tuple[int, int]: ...


class ResponseStore:
    """path: the file; None keeps responses in memory, until the process ends. Safe to use in any
    thread, by one process at a time.

    A response is kept for `seconds`. The oldest go earlier where there are more than `most` or they
    hold more than `most_bytes`; the newest stays. Raises OssiaError for a file that is no such
    store or cannot be written.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        most: int = MOST_RESPONSES,
        most_bytes: int = MOST_BYTES,
        seconds: float = KEPT_SECONDS,
    ) -> None:
        self._most, self._most_bytes, self._seconds = most, most_bytes, seconds
        self._lock = threading.Lock()
        try:
            if path is not None:  # others must not read it, nor the files beside it
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(
                path or ":memory:", timeout=WAIT_SECONDS, check_same_thread=False
            )
            with self._database as database:
                for statement in _SCHEMA:
                    database.execute(statement)
                self.key = self._secret(database)
                _end_those_that_ran(database)
                self._count, self._bytes = database.execute(
                    "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM responses"
                ).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise OssiaError(f"{path}: cannot be used to keep responses: {error}") from error

    def put(self, kept: Kept, *, running: bool = False) -> None:
        """Keep a response in place of an earlier state of it. It is on the disk when this returns.

        running: it is still to be completed; if the process ends before, it has failed.
        """
        id, now = kept.response["id"], time.time()
        texts = json.dumps(kept.response), json.dumps(kept.input)
        events = None if kept.events is None else zlib.compress(kept.events)
        size = sum(len(text) for text in texts) + len(events or b"")
        row = (id, now, size, running, *texts, events)
        with self._lock:
            before = self._count, self._bytes
            try:
                with self._database as database:
                    self._remove(database, id)
                    database.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                    self._count, self._bytes = self._count + 1, self._bytes + size
                    self._make_room(database, now)
            except sqlite3.Error as error:
                self._count, self._bytes = before
                raise OssiaError(f"the response cannot be kept: {error}") from error

    def get(self, id: str) -> Kept | None:
        """What was kept under an id; None if there is nothing."""
        if not id.isascii():  # nor could SQLite read every text that JSON can hold
            return None
        with self._lock:
            found = self._database.execute(
                "SELECT response, input, events FROM responses WHERE id = ? AND created >= ?",
                (id, time.time() - self._seconds),
            ).fetchone()
        if found is None:
            return None
        response, items, events = found
        told = None if events is None else zlib.decompress(events)
        return Kept(json.loads(response), json.loads(items), told)

    def delete(self, id: str) -> bool:
        """Whether there was one to delete."""
        with self._lock, self._database as database:
            return id.isascii() and self._remove(database, id)

    def fail(self, id: str) -> None:
        """Have a response fail whose process has died, if it is still to be completed."""
        with self._lock, self._database as database:
            _end_those_that_ran(database, id)

    def size(self) -> tuple[int, int]:
        """How many responses there are, and their bytes; without waiting for a write."""
        return self._count, self._bytes

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _remove(self, database: sqlite3.Connection, id: str) -> bool:
        found = database.execute("SELECT bytes FROM responses WHERE id = ?", (id,)).fetchone()
        if found is None:
            return False
        database.execute("DELETE FROM responses WHERE id = ?", (id,))
        self._count, self._bytes = self._count - 1, self._bytes - found[0]
        return True

    def _make_room(self, database: sqlite3.Connection, now: float) -> None:
        while self._count > 1:
            id, created = database.execute(
                "SELECT id, created FROM responses ORDER BY created, rowid LIMIT 1"
            ).fetchone()
            full = self._count > self._most or self._bytes > self._most_bytes
            if not full and created >= now - self._seconds:
                return
            self._remove(database, id)

    @staticmethod
    def _secret(database: sqlite3.Connection) -> bytes:
        """The key of reasoning that clients keep, made once for a file."""
        made = ("reasoning", secrets.token_bytes(32))
        database.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", made)
        found = database.execute("SELECT value FROM secrets WHERE name = ?", made[:1])
        return bytes(found.fetchone()[0])


def _end_those_that_ran(database: sqlite3.Connection, only: str | None = None) -> None:
    """Responses in the background whose process has died are failed ones. only: the id of one."""
    running = "SELECT id, response FROM responses WHERE running AND id = COALESCE(?, id)"
    for id, text in database.execute(running, (only,)).fetchall():
        message = "the server stopped before the response was complete"
        error = {"code": "server_error", "message": message}
        response = json.loads(text) | {"status": "failed", "error": error}
        database.execute(
            "UPDATE responses SET running = 0, response = ? WHERE id = ?",
            (json.dumps(response), id),
        )
