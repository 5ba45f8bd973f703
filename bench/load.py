"""How long a checkpoint takes to load from a warm page cache, and what memory beside file pages.

    python bench/load.py FOLDER [--tokens N]

Prints one JSON line. Anonymous memory is what the process cannot give back: pages of the mapped
checkpoint count as `file`. Linux only, as it reads /proc/self/status.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from pathlib import Path

import torch

from ossia import checkpoint

CHUNK = 64 << 20


def resident(kind: str) -> int:
    """Bytes of this process in memory: "Anon", "File" or "Shmem"."""
    found = re.search(rf"Rss{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "this kernel does not split resident memory by kind"
    return int(found[1]) << 10


def warm(folder: Path) -> int:
    """Read every weight file once; returns their bytes."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                total += len(chunk)
    return total


class PeakAnonymous:
    """The most anonymous memory seen while the block ran, looked at every 10 ms."""

    def __enter__(self) -> PeakAnonymous:
        self.bytes = resident("Anon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, resident("Anon"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident("Anon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1, help="of one forward pass after loading")
    arguments = parser.parse_args()
    size = warm(arguments.folder)
    before = resident("Anon")
    with PeakAnonymous() as peak:
        start = time.perf_counter()
        decoder = checkpoint.load(arguments.folder)
        load_seconds = time.perf_counter() - start
        loaded = {"anonymous": resident("Anon"), "file": resident("File")}
        start = time.perf_counter()
        with torch.inference_mode():
            decoder(torch.arange(arguments.tokens)[None])
        forward_seconds = time.perf_counter() - start
    result = {
        "checkpoint_bytes": size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_seconds": round(load_seconds, 3),
        "forward_tokens": arguments.tokens,
        "forward_seconds": round(forward_seconds, 3),
        "anonymous_bytes_before": before,
        "anonymous_bytes_loaded": loaded["anonymous"],
        "anonymous_bytes_peak": peak.bytes,
        "file_bytes_loaded": loaded["file"],
        "file_bytes_after_forward": resident("File"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
