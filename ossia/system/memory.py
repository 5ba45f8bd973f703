"""How much memory there is to use, and sizes as people write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.errors import OssiaError
from ossia.system.control_groups import groups, read

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """Bytes in "12GiB", "500 MB", "1.5g" or "123456". Raises OssiaError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None:
        raise OssiaError(f"{text!r} is no size; write 12GiB, 500MB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def format_size(size: float) -> str:
    return f"{size / 10**9:,.1f} GB" if size >= 10**8 else f"{size / 10**6:,.1f} MB"


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can still be used without swapping; None where the system does not say.

    The least of what the machine has and of what each control group that holds this process leaves
    of its limit. Cached files count as free, as the system drops them. root: where proc and
    sys/fs/cgroup lie, elsewhere in tests.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", read(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return None
    left = [int(found[1]) << 10]
    for version, group in groups("memory", root):
        left += _left_in(group, *_FILES[version])
    return max(0, min(left))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still use on a device: a GPU's own free memory, or
    `available_memory`. Where the system does not report that, half of the machine's memory, or
    4 GiB if even that is unknown.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = available_memory()
    if free is not None:
        return free
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 << 30


# By version, the files of a control group: its limit, what it uses, and in memory.stat the cached
# files.
_FILES = {
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def _left_in(group: Path, limit: str, used: str, cached: tuple[str, str]) -> Iterator[int]:
    """What a group leaves; nothing where there is no such group, or no limit: "max"."""
    try:
        left = int(read(group / limit)) - int(read(group / used))
        stat = dict(line.split() for line in read(group / "memory.stat").splitlines())
        yield left + sum(int(stat.get(name, 0)) for name in cached)
    except ValueError:
        return
