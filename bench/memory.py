"""The memory that a command takes, by kind, and its time.

    python bench/memory.py ossia chat "What is 48213 * 977?"

Reads the command's own process twenty times a second (Linux: /proc), without those that it starts.
The system can drop the pages of mapped files when others need the memory, but not anonymous ones.
Prints one line of JSON: the highest anonymous memory, file pages and both together in bytes, and
the seconds that the command took. Exits as the command does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

_SAMPLE_SECONDS = 0.05
_KINDS = {"RssAnon": "anonymous", "RssFile": "file_pages", "VmHWM": "both"}


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python bench/memory.py COMMAND ...", file=sys.stderr)
        return 2
    peaks = dict.fromkeys(_KINDS.values(), 0)
    start = time.perf_counter()
    try:
        process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
    except OSError as error:
        print(f"error: cannot run {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 2
    with process:
        while process.poll() is None:
            for kind, size in _resident(process.pid).items():
                peaks[kind] = max(peaks[kind], size)
            time.sleep(_SAMPLE_SECONDS)
    print(json.dumps({**peaks, "seconds": round(time.perf_counter() - start, 2)}))
    return process.returncode


def _resident(pid: int) -> dict[str, int]:
    """Bytes by kind; none of a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE)
    return {_KINDS[name]: int(size) << 10 for name, size in found if name in _KINDS}


if __name__ == "__main__":
    sys.exit(main())
