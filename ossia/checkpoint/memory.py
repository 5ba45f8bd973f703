"""How much memory there is to use, and sizes as people write them."""

from __future__ import annotations

import re
from pathlib import Path

from ossia.errors import OssiaError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """Bytes in "12GiB", "500 MB", "1.5g" or "123456". Raises OssiaError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None:
        raise OssiaError(f"{text!r} is no size; write 12GiB, 500MB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def format_size(size: float) -> str:
    return f"{size / 10**9:,.1f} GB" if size >= 10**8 else f"{size / 10**6:,.1f} MB"


def available_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can still be used without swapping; None where the system does not say.

    The least of what the machine has and of what each control group that holds this process leaves
    of its limit (versions 1 and 2). Cached files count as free, as the system drops them.
    """
    try:
        meminfo = (proc / "meminfo").read_text(encoding="ascii")
        groups = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if found is None:
        return None
    left = [int(found[1]) << 10]
    for line in groups:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if "memory" in names:
            left += _left_in(cgroups / "memory", path, _V1)
        elif names == [""]:
            left += _left_in(cgroups, path, _V2)
    return max(0, min(left))


# The files of a control group: its limit, what it uses, and in memory.stat the cached files.
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def _left_in(root: Path, path: str, names: tuple[str, str, tuple[str, str]]) -> list[int]:
    """What each group from `path` up to the root leaves. In a container the path may be that of the
    host, and the group lie at the root.
    """
    left = []
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names[:2])
            stat = dict(
                line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
            )
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        left.append(limit - used + sum(int(stat.get(name, 0)) for name in names[2]))
    return left
