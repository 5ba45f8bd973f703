"""The control groups of Linux around this process, which may grant it less than the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each group that may limit what `controller` counts; both versions of
    the interface may be mounted. A folder need not exist, and may come twice.

    root: where proc and sys/fs/cgroup lie, elsewhere in tests.
    """
    mounts = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version, places = 2, (mounts, mounts / "unified")
        elif controller in controllers.split(","):
            version, places = 1, (mounts / controllers, mounts / controller)
        else:
            continue
        for mount in places:
            yield from ((version, group) for group in _around(mount, path))


def read(path: Path) -> str:
    """The text of one of the system's files, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")  # names of groups may be anything
    except (OSError, ValueError):
        return ""


def _around(mount: Path, path: str) -> Iterator[Path]:
    """A group and those it lies in: each limits it. In a container the path may be that of the
    host, of which only the last, mounted, can be seen.
    """
    yield mount
    for part in filter(None, path.split("/")):
        mount = mount / part
        yield mount
