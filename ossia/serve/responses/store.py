"""Responses kept in SQLite: one that was answered is on the disk, even if the process is killed."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError
from ossia.serve.responses.items import Items

KEPT_SECONDS = 30 * 24 * 3600
MOST_RESPONSES = 10_000  # of which the oldest go first


class ResponseStore:
    """path: the file; None keeps responses in memory, until the process ends. Safe to use in any
    thread. Raises OssiaError for a file that is no such store.
    """

    def __init__(self, path: Path | None = None, *, most: int = MOST_RESPONSES) -> None:
        self._most, self._lock = most, threading.Lock()
        try:
            self._database = sqlite3.connect(path or ":memory:", check_same_thread=False)
            with self._database as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, created REAL NOT "
                    "NULL, response TEXT NOT NULL, input TEXT NOT NULL)"
                )
                database.execute("CREATE INDEX IF NOT EXISTS by_age ON responses (created)")
        except sqlite3.Error as error:
            raise OssiaError(f"{path}: cannot be used to keep responses: {error}") from error

    def put(self, response: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """Keep a response and all items that it answers, those of earlier responses too. It is on
        the disk when this returns.
        """
        now = time.time()
        row = (response["id"], now, json.dumps(response), json.dumps(items))
        with self._lock, self._database as database:
            database.execute("INSERT INTO responses VALUES (?, ?, ?, ?)", row)
            database.execute("DELETE FROM responses WHERE created < ?", (now - KEPT_SECONDS,))
            database.execute(
                "DELETE FROM responses WHERE id IN "
                "(SELECT id FROM responses ORDER BY created DESC LIMIT -1 OFFSET ?)",
                (self._most,),
            )

    def get(self, id: str) -> tuple[dict[str, Any], Items] | None:
        """A response and the items that it answers; None if there is none of that id."""
        with self._lock:
            found = self._database.execute(
                "SELECT response, input FROM responses WHERE id = ?", (id,)
            ).fetchone()
        return None if found is None else (json.loads(found[0]), json.loads(found[1]))

    def delete(self, id: str) -> bool:
        """Whether there was one to delete."""
        with self._lock, self._database as database:
            return database.execute("DELETE FROM responses WHERE id = ?", (id,)).rowcount > 0

    def close(self) -> None:
        with self._lock:
            self._database.close()
