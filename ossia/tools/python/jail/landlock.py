"""Landlock: this process and its threads may open only what is named here, for good.

https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

from ossia.errors import OssiaError
from ossia.tools.python.jail.libc import PR_SET_NO_NEW_PRIVS, prctl, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # a flag of _CREATE_RULESET
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_TRUNCATE = 1 << 14
_MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11  # devices, sockets, FIFOs
_EXECUTE, _IOCTL_DEVICE = 1 << 0, 1 << 15
_READ = _READ_FILE | _READ_DIR
_OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE
# How many of the rights to files each version of the interface knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET = 0b11  # bind and connect, of TCP; since version 4
_SCOPED = 0b11  # abstract UNIX sockets and signals; since version 6


def restrict(readable: Sequence[str], scratch: str) -> None:
    """Leave reading beneath `readable`, and all but running programs and making devices, sockets
    and FIFOs beneath `scratch`. Raises OssiaError without Landlock.
    """
    try:
        version = syscall("Landlock", _CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        raise OssiaError(f"the kernel has no Landlock, or it is off ({error})") from error
    handled = (1 << _RIGHTS[min(version, 5)]) - 1
    attributes = struct.pack(
        "QQQ", handled, _NET if version >= 4 else 0, _SCOPED if version >= 6 else 0
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = syscall("Landlock", _CREATE_RULESET, attributes, size, 0)
    for path in readable:
        _allow(ruleset, path, _READ & handled)
    _allow(ruleset, "/dev/null", (_WRITE_FILE | _READ) & handled)
    _allow(ruleset, "/dev/urandom", _READ & handled)
    _allow(ruleset, scratch, handled & ~(_EXECUTE | _MAKE_SPECIAL | _IOCTL_DEVICE))
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
    syscall("Landlock", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow the rights beneath a path, or to it if it is a file; nothing if it does not exist."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(beneath).st_mode):
        rights &= _OF_A_FILE
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, beneath))
    syscall(f"Landlock: {path}", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    os.close(beneath)
