"""Memory of this process by kind, its peak, and files read into the page cache (Linux: /proc)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from pathlib import Path

from ossia.errors import OssiaError

_CHUNK = 64 << 20
_SAMPLE_SECONDS = 0.05  # long enough not to disturb what is timed meanwhile


def resident(kind: str) -> int:
    """Resident bytes of this process: "Anon", "File" or "Shmem".

    The system can drop pages of mapped files, but not anonymous memory. Raises OssiaError where the
    system does not report them.
    """
    return _kilobytes(Path("/proc/self/status"), f"Rss{kind}")


def total() -> int:
    """Bytes of physical memory."""
    return _kilobytes(Path("/proc/meminfo"), "MemTotal")


def _kilobytes(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if not found:
        raise OssiaError(
            f"memory cannot be measured here: it takes {path} with a line {name}, as on Linux"
        )
    return int(found[1]) << 10


def warm(files: Iterable[Path]) -> None:
    """Read files once, so that they are in the page cache."""
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass


class PeakAnonymous:
    """Peak anonymous memory while the block runs, sampled twenty times a second."""

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
