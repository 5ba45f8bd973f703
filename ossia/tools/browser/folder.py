"""A folder of text, Markdown and HTML files as what the browser searches: no network."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from ossia.errors import OssiaError
from ossia.tools.browser.markup import read_html, read_markdown, read_text
from ossia.tools.browser.page import SOURCE, Links, Page, without_links

_READERS: dict[str, Callable[[str, str], Page]] = {
    ".txt": read_text,
    ".rst": read_text,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
}
_MOST_BYTES = 4 << 20  # of a file
_MOST_FILES = 100_000
_MOST_WORDS = 32  # of a query
_KEPT_PAGES = 64  # that were read last


class Folder:
    """A `Backend` over the files of a folder, hidden ones aside; a page's address is its path in
    the folder. The index is in memory, and follows the files as they change. Raises OssiaError for
    what is no folder.
    """

    source = "files"

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).resolve()
        if not self._root.is_dir():
            raise OssiaError(f"{root}: there is no such folder to browse")
        self._seen: dict[str, tuple[int, int]] = {}  # time and size of each file in the index
        self._lock = threading.Lock()
        self._page = lru_cache(_KEPT_PAGES)(self._parsed)
        try:
            self._index = sqlite3.connect(":memory:", check_same_thread=False)
            self._index.execute(
                "CREATE VIRTUAL TABLE pages USING fts5"
                "(url UNINDEXED, title, body, tokenize = 'porter unicode61')"
            )
        except sqlite3.OperationalError as error:
            raise OssiaError(f"this Python's SQLite cannot search text: {error}") from error
        with self._lock:
            self._refresh()

    def search(self, query: str, most: int) -> Page:
        """See Backend. A file is found if it holds any of the words; rare ones count more."""
        words = re.findall(r"\w+", query)[:_MOST_WORDS]
        with self._lock:
            self._refresh()
            rows = self._found(words, most)
            states = {url: self._seen[url] for url, _, _ in rows}
        links, lines, places = Links(), ["", "URL: ", "", "# Search Results", ""], {}
        for n, (url, title, snippet) in enumerate(rows):
            lines.append(f"  * {links.mark(url, title)} {' '.join(snippet.split())}")
            with contextlib.suppress(OSError):  # it is gone, and opening it will say so
                places[str(n)] = _place(self._page(url, states[url]), words)
        if not rows:
            lines.append("No results.")
        return Page("", query, "\n".join(lines), links.urls, places)

    def _found(self, words: list[str], most: int) -> list[tuple[str, str, str]]:
        """The paths, titles and words in question of the files that hold any of the words."""
        if not words:
            return []
        return self._index.execute(
            "SELECT url, title, snippet(pages, 2, '', '', '...', 24) FROM pages "
            "WHERE pages MATCH ? ORDER BY bm25(pages, 0, 4, 1) LIMIT ?",
            (" OR ".join(f'"{word}"' for word in words), most),
        ).fetchall()

    def fetch(self, url: str) -> Page:
        """See Backend. Raises OssiaError for what is no file of the folder."""
        path = url.removeprefix(SOURCE)
        with self._lock:
            self._refresh()
            state = self._seen.get(path)
        if state is None:
            raise OssiaError(f"Error fetching URL `{path}`: there is no such page; search for one")
        try:
            return self._page(path, state) if url == path else read_text(self._read(path), url)
        except OSError as error:
            raise OssiaError(f"Error fetching URL `{path}`: {error.strerror}") from error

    def _refresh(self) -> None:
        """Take into the index what has changed in the folder."""
        found = dict(self._files())
        with self._index:
            for path in self._seen.keys() - found.keys():
                self._drop(path)
            for path, state in found.items():
                if self._seen.get(path) == state:
                    continue
                self._drop(path)
                try:
                    page = self._parsed(path, state)
                except OSError:
                    continue
                row = (path, page.title, without_links(page.text))
                self._index.execute("INSERT INTO pages (url, title, body) VALUES (?, ?, ?)", row)
                self._seen[path] = state

    def _drop(self, path: str) -> None:
        if self._seen.pop(path, None) is not None:
            self._index.execute("DELETE FROM pages WHERE url = ?", (path,))

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The paths of the files, with what changes when they do. Links out of the folder are
        none.
        """
        left = _MOST_FILES
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if name.startswith(".") or file.suffix.lower() not in _READERS:
                    continue
                try:
                    state = file.stat()
                    inside = not file.is_symlink() or file.resolve().is_relative_to(self._root)
                except OSError:
                    continue
                if file.is_file() and inside and state.st_size <= _MOST_BYTES:
                    yield (
                        file.relative_to(self._root).as_posix(),
                        (
                            state.st_mtime_ns,
                            state.st_size,
                        ),
                    )
                    left -= 1
                if not left:
                    return

    def _parsed(self, path: str, _state: tuple[int, int]) -> Page:
        return _READERS[Path(path).suffix.lower()](self._read(path), path)

    def _read(self, path: str) -> str:
        with open(self._root / path, "rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace").replace("\r\n", "\n")


def _place(page: Page, words: list[str]) -> int:
    """The line that holds most of the words."""
    sought = {word.lower() for word in words}
    counts = [len(sought & {*re.findall(r"\w+", line.lower())}) for line in page.lines]
    return counts.index(max(counts))
