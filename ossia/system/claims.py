"""Folders that one process at a time writes to."""

from __future__ import annotations

import os
import secrets
import weakref
from pathlib import Path

from ossia.errors import OssiaError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK_FILE = ".lock"


class Claim:
    """A folder that other processes leave alone while this object lives; made by `claim`."""

    def __init__(self, descriptor: int) -> None:
        self._token = secrets.token_hex(8).encode()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, self._token)
        weakref.finalize(self, os.close, descriptor)

    def check(self, folder: Path) -> None:
        """Raise OssiaError if `folder` is not the one that was claimed: if that is no longer there,
        or another is in its place.
        """
        try:
            intact = (folder / LOCK_FILE).read_bytes() == self._token
        except OSError:
            intact = False
        if not intact:
            raise OssiaError(f"{folder} was removed or replaced while this process wrote to it")


def claim(folder: Path) -> Claim:
    """Claim a folder for this process, which may claim it again.

    The claim is a lock on a file in the folder, which ends with the process, however that ends, and
    goes with the folder where that is moved. Raises OssiaError if another process has claimed the
    folder, or if it cannot be written to.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OssiaError(f"cannot write to {folder}: {error.strerror}") from error
    status = os.fstat(descriptor)
    key = status.st_dev, status.st_ino
    if (held := _held.get(key)) is not None:
        os.close(descriptor)
        return held
    if not lock(descriptor):
        os.close(descriptor)
        raise OssiaError(
            f"another process is at work in {folder}: wait for it, or give another folder"
        )
    _held[key] = claimed = Claim(descriptor)
    return claimed


_held: weakref.WeakValueDictionary[tuple[int, int], Claim] = weakref.WeakValueDictionary()


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process has locked it. True
    as well where the system or the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
