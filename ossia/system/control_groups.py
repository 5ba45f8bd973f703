"""The Linux control groups of this process, which may grant it less than the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """(version, folder) of each group that may limit `controller`; both versions of the interface
    may be mounted. Folders may not exist, and may be repeated.

    root: the folder of proc and sys/fs/cgroup, which differs in tests.
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
    """The text of a system file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")  # names of groups may be in any encoding
    except (OSError, ValueError):
        return ""


def _around(mount: Path, path: str) -> Iterator[Path]:
    """A group and its ancestors, each of which limits it. In a container the path may be the
    host's, of which only the mounted end is visible.
    """
    yield mount
    for part in filter(None, path.split("/")):
        mount = mount / part
        yield mount
