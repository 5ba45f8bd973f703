"""How many processors this process may keep busy: fewer than the machine has, in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable(root: Path = Path("/")) -> int:
    """Those it may run on, or the whole ones that its control groups grant if these are fewer.

    root: where proc and sys/fs/cgroup lie, elsewhere in tests.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, min([count, *map(int, _granted(root))]))


def _granted(root: Path) -> Iterator[float]:
    """The processors' worth of time that each control group around this process grants; both
    versions of the interface may be mounted.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            for mount in (mounts, mounts / "unified"):
                for group in _groups(mount, path):
                    yield from _share(_read(group / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for mount in (mounts / controllers, mounts / "cpu"):
                for group in _groups(mount, path):
                    files = (group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
                    yield from _share(" ".join(map(_read, files)))


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """A group and those it lies in: each limits it. In a container the path may be that of the
    host, of which only the last, mounted, can be seen.
    """
    yield mount
    for part in path.split("/"):
        mount = mount / part
        yield mount


def _share(text: str) -> Iterator[float]:
    """The quota over the period; nothing where there is no limit, "max" or -1, or no such text."""
    try:
        quota, period = map(int, text.split())
        if quota > 0:
            yield quota / period
    except (ValueError, ZeroDivisionError):
        return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
