"""What the process may use, and who it is: nobody of this machine's users if the server is root."""

from __future__ import annotations

import _thread
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Mapping

from ossia.errors import OssiaError
from ossia.tools.python.jail.libc import (
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_PDEATHSIG,
    prctl,
    syscall,
)

_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES = 0x20080522  # the version of the interface
_DAC_OVERRIDE, _DAC_READ_SEARCH, _KILL = 1 << 1, 1 << 2, 1 << 5
_STACK = 8 << 20
_MOST_THREADS = 1 << 22  # that Linux can have


def become_nobody(user: int, scratch: str) -> None:
    """If this process is root's, make it that user's, so that the number of threads is limited,
    which root's is not; `scratch` goes with it. Of root's rights it keeps that of reading files
    (the interpreter may be in root's home), which Landlock then narrows.
    """
    if os.geteuid() != 0 and os.getuid() != 0:
        return
    permitted = int(_status("CapPrm"), 16)
    keep = next((bit for bit in (_DAC_READ_SEARCH, _DAC_OVERRIDE) if permitted & bit), 0)
    if not permitted & _KILL:
        raise OssiaError("the server runs as root and may not end another user's process")
    try:
        os.chown(scratch, user, user)
        prctl("capabilities", PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise OssiaError(
            f"the server runs as root and may not become another user ({error.strerror})"
        ) from error
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITIES, 0))
    sets = ctypes.create_string_buffer(struct.pack("6I", keep, keep, 0, 0, 0, 0))
    syscall("capabilities", _CAPSET[os.uname().machine], header, sets)


def _status(name: str) -> str:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith(f"{name}:"))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, and shut debuggers out."""
    prctl("the death signal", PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl("dumpable", PR_SET_DUMPABLE, 0)
    if os.getppid() != parent:
        raise OssiaError("the server has ended")


def apply(limits: Mapping[str, int]) -> None:
    """Set the limits that the kernel enforces: see `ossia.tools.python.sandbox.Limits`."""
    os.nice(5)  # the engine goes first
    seconds = limits["cpu_seconds"]
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # the first ends with a signal of its own
        (resource.RLIMIT_FSIZE, limits["file"], limits["file"]),
        (resource.RLIMIT_NOFILE, limits["files"], limits["files"]),
        (resource.RLIMIT_STACK, _STACK, _STACK),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_SIGPENDING, 64, 64),
        (resource.RLIMIT_AS, limits["memory"], limits["memory"]),
    ):
        _limit(kind, soft, hard)
    most = _threads() + limits["threads"]
    _limit(resource.RLIMIT_NPROC, most, most)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Lower a limit; one that is lower already stays."""
    now = resource.getrlimit(kind)[1]
    if now != resource.RLIM_INFINITY:
        soft, hard = min(soft, now), min(hard, now)
    resource.setrlimit(kind, (soft, hard))


def _threads() -> int:
    """How many threads the kernel counts for this user, found by trying: those in other containers
    count, and cannot be seen.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    low, high = 0, _MOST_THREADS if hard == resource.RLIM_INFINITY else hard
    while low < high:  # one more can be started at `high`, none at below `low`
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_NPROC, (middle, hard))
        if _can_start():
            high = middle
        else:
            low = middle + 1
    return max(0, low - 1)


def _can_start() -> bool:
    others = _tasks()
    try:
        _thread.start_new_thread(_nothing, ())
    except RuntimeError:
        return False
    while _tasks() > others:  # it counts until the kernel has forgotten it
        os.sched_yield()
    return True


def _nothing() -> None:
    """What a thread that is only tried does."""


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))
