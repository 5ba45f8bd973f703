"""How many processors this process may keep busy: fewer than the machine has, in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ossia.system.control_groups import groups, read


def usable(root: Path = Path("/")) -> int:
    """Those it may run on, or the whole ones that its control groups grant if these are fewer.

    root: where proc and sys/fs/cgroup lie, elsewhere in tests.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, min([count, *map(int, _granted(root))]))


def _granted(root: Path) -> Iterator[float]:
    """The processors' worth of time that each control group around this process grants."""
    for version, group in groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        yield from _share(" ".join(read(group / name) for name in names))


def _share(text: str) -> Iterator[float]:
    """The quota over the period; nothing where there is no limit, "max" or -1, or no such text."""
    try:
        quota, period = map(int, text.split())
        if quota > 0:
            yield quota / period
    except (ValueError, ZeroDivisionError):
        return
