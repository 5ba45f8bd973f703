"""What a process holds in memory, by kind, and files brought into it. Linux: from /proc."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from pathlib import Path

from ossia.errors import OssiaError

_CHUNK = 64 << 20
_SAMPLE_SECONDS = 0.05  # rare enough to cost what is timed meanwhile nothing


def resident(kind: str) -> int:
    """Bytes of this process in memory: "Anon", "File" or "Shmem".

    Anonymous memory is what the process cannot give back; pages of a mapped file it can.
    Raises OssiaError where the system does not tell.
    """
    return _kilobytes(Path("/proc/self/status"), f"Rss{kind}")


def total() -> int:
    """Bytes of memory that the machine has."""
    return _kilobytes(Path("/proc/meminfo"), "MemTotal")


def _kilobytes(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if not found:
        raise OssiaError(f"{path} with a line {name}, which Linux has, is needed to measure memory")
    return int(found[1]) << 10


def warm(files: Iterable[Path]) -> None:
    """Read files once, so that their pages are in memory."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass


class PeakAnonymous:
    """The most anonymous memory while the block runs, looked at twenty times a second."""

    def __enter__(self) -> PeakAnonymous:
        self.bytes = resident("Anon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, resident("Anon"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident("Anon"))
