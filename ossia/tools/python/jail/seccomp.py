"""The system calls that are left to this process, as a seccomp filter: a program of the kernel's
classic BPF. What is not named in `syscalls` does not exist.

https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence

from ossia.errors import OssiaError
from ossia.tools.python.jail import syscalls
from ossia.tools.python.jail.libc import PR_SET_NO_NEW_PRIVS, prctl, syscall

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, linux/audit.h
_X32 = 0x40000000  # in the numbers of another interface of x86-64
_ALLOW, _KILL_PROCESS, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they are in what a filter reads
_ALL = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]  # code, to skip if true, to skip if false, operand
# An argument's half (twice its index, 1 more for the upper 32 bits), which bits, and their values.
Check = tuple[int, int, Sequence[int]]

_THREAD = 0x00010000  # CLONE_THREAD: a thread, no process
_NAMESPACES = 0x7E020000
_AF_UNIX, _SOCK_STREAM, _SOCKET_TYPES = 1, 1, 0xF
_FCNTL = (*range(8), 36, 37, 38, 1030)  # descriptors, flags and locks, not owners and signals
_IOCTL = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # is it a terminal, FIONREAD, FIONBIO, ...
_PRCTL = (15, 16)  # the thread's name


def _checks() -> dict[str, tuple[int, tuple[Check, ...]]]:
    """What the arguments of a call must be, and the error of one where they are not."""
    own = (os.getpid(),)
    return {
        "clone": (errno.EPERM, ((0, _THREAD | _NAMESPACES, (_THREAD,)),)),
        "fcntl": (errno.EPERM, ((2, _ALL, _FCNTL),)),
        "ioctl": (errno.ENOTTY, ((2, _ALL, _IOCTL),)),
        "kill": (errno.EPERM, ((0, _ALL, own),)),
        "tgkill": (errno.EPERM, ((0, _ALL, own),)),
        "prctl": (errno.EINVAL, ((0, _ALL, _PRCTL),)),
        "prlimit64": (errno.EPERM, ((0, _ALL, (0, *own)),)),
        # Of datagrams, one could be sent to any socket of this machine.
        "socketpair": (
            errno.EPERM,
            ((0, _ALL, (_AF_UNIX,)), (2, _SOCKET_TYPES, (_SOCK_STREAM,))),
        ),
        "sendto": (errno.EPERM, ((8, _ALL, (0,)), (9, _ALL, (0,)))),  # without an address
    }


def install() -> None:
    """Filter the calls of all threads from now on. Raises OssiaError where that is impossible."""
    machine = os.uname().machine
    if machine not in syscalls.MACHINES:
        raise OssiaError(f"the processor is a {machine}, and must be {syscalls.MACHINES}")
    instructions = [struct.pack("HBBI", *instruction) for instruction in _program(machine)]
    program = ctypes.create_string_buffer(b"".join(instructions))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(program))
    )
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
    if syscall("seccomp", _SECCOMP[machine], _SET_MODE_FILTER, _ALL_THREADS, header):
        raise OssiaError("seccomp: a thread of another filter is in the way")


def _program(machine: str) -> Iterator[Instruction]:
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, _ARCHITECTURES[machine]
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield _AT_LEAST, 0, 1, _X32
        yield _RETURN, 0, 0, _KILL_PROCESS
    for numbers, answer in (
        (syscalls.free(machine), _ALLOW),
        (syscalls.idle(machine), _ERROR),  # of number 0, which is none
        (syscalls.unsupported(machine), _ERROR | errno.ENOTSUP),
        (syscalls.denied(machine), _ERROR | errno.EPERM),
    ):
        for number in numbers.values():
            yield _EQUAL, 0, 1, number
            yield _RETURN, 0, 0, answer
    checks = _checks()
    for name, number in syscalls.checked(machine).items():
        error, needed = checks[name]
        body = [*_checked(needed, _ERROR | error)]
        yield _EQUAL, 0, len(body), number
        yield from body
    yield _RETURN, 0, 0, _ERROR | errno.ENOSYS


def _checked(checks: Sequence[Check], refused: int) -> Iterator[Instruction]:
    """Allow the call if all checks hold."""
    for half, mask, values in checks:
        yield _LOAD, 0, 0, _ARGUMENTS + 4 * half
        yield _AND, 0, 0, mask
        for n, value in enumerate(values):
            yield _EQUAL, len(values) - n, 0, value  # past the refusal
        yield _RETURN, 0, 0, refused
    yield _RETURN, 0, 0, _ALLOW
