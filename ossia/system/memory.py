"""How much memory is free, and sizes as people write them."""

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
    """Bytes that can be used without swapping; None if the system does not report it.

    The minimum of the machine's free memory and of what remains of the limit of each control group
    of this process. Cached files count as free, because the system drops them. root: the folder of
    proc and sys/fs/cgroup, which differs in tests.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", read(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return None
    left = [int(found[1]) << 10]
    for version, group in groups("memory", root):
        left += _left_in(group, *_FILES[version])
    return max(0, min(left))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still use on a device: a GPU's free memory and what torch has
    taken of it and not used, or `available_memory`. If the system does not report it: half of the
    machine's memory, or 4 GiB if that is unknown too.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = available_memory()
    if free is not None:
        return free
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 4 << 30


def device_memory(device: torch.device) -> int:
    """All bytes of a GPU's memory."""
    import torch

    return torch.cuda.mem_get_info(device)[1]


# By version, the files of a control group: its limit and its usage; then the entries of memory.stat
# that count cached files.
_FILES = {
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def _left_in(group: Path, limit: str, used: str, cached: tuple[str, str]) -> Iterator[int]:
    """What remains of a group's limit; nothing if there is no such group or no limit ("max")."""
    try:
        left = int(read(group / limit)) - int(read(group / used))
        stat = dict(line.split() for line in read(group / "memory.stat").splitlines())
        yield left + sum(int(stat.get(name, 0)) for name in cached)
    except ValueError:
        return
