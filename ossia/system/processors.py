"""How many processors this process may use: in a container, fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ossia.system.control_groups import groups, read


def usable(root: Path = Path("/")) -> int:
    """The processors in its affinity mask, or the whole processors that its control groups grant if
    these are fewer.

    root: the folder of proc and sys/fs/cgroup, which differs in tests.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, min([count, *map(int, _granted(root))]))


def _granted(root: Path) -> Iterator[float]:
    """The processor time that each control group of this process grants, in processors."""
    for version, group in groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        yield from _share(" ".join(read(group / name) for name in names))


def _share(text: str) -> Iterator[float]:
    """The quota over the period; nothing if there is no limit ("max" or -1) or no such file."""
    try:
        quota, period = map(int, text.split())
        if quota > 0:
            yield quota / period
    except (ValueError, ZeroDivisionError):
        return
