"""Runs code of a model in a process of its own that cannot reach what is around it.

The process locks itself down before it reads a line of the code (`ossia.tools.python.jail`):
Landlock leaves it the interpreter's libraries to read and a scratch folder to write, seccomp leaves
it no socket, no second process and no signal to others, and resource limits end it. None of that
needs rights, so that it works in containers too; where any of it is missing nothing runs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from ossia.errors import OssiaError

# systemd keeps these for services that have no user of their own; no person has one. Two processes
# at once have two, or the threads of one would count against the limit of the other.
_USERS = itertools.cycle(random.sample(range(61184, 65520), 65520 - 61184))
_TICK_SECONDS = 0.1  # between looks at the scratch folder
_START_SECONDS = 300.0  # in which a process locks itself down, on the busiest machine
_LIBRARIES = (  # what extension modules are linked with, and the time zones
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from ossia.tools.python.jail import main
main(int(sys.argv[2]))
"""


@dataclass(frozen=True)
class Limits:
    """What one run may use. seconds: of the clock, from when the process is locked down.
    cpu_seconds: of the processor, all threads together. memory: bytes of address space. threads:
    beside the first. files: open at a time. file: bytes of each file. scratch: bytes of all files,
    and `entries` files and folders; looked at ten times a second. output: characters that are kept,
    from its begin and its end.
    """

    seconds: float = 60.0
    cpu_seconds: int = 60
    memory: int = 1 << 30
    threads: int = 32
    files: int = 64
    file: int = 1 << 25
    scratch: int = 1 << 27
    entries: int = 10_000
    output: int = 1 << 15


@dataclass(frozen=True)
class Ran:
    """What a run printed, its errors among it. end: why it was ended, if it did not end itself."""

    output: str
    end: str | None
    exit_code: int


def run(code: str, limits: Limits = Limits(), stop: threading.Event | None = None) -> Ran:
    """Run Python code and wait for its end; `stop` ends it from another thread. Raises OssiaError,
    and has run nothing, where the process cannot be locked down.
    """
    if sys.platform != "linux":
        raise OssiaError(_refused("it needs Linux, with Landlock and seccomp"))
    with _scratch() as scratch, tempfile.TemporaryFile() as job:
        job.write(json.dumps(_job(code, scratch, limits)).encode())
        job.seek(0)
        told, status = os.pipe()
        try:
            try:
                process = _start(scratch, job, status)
            finally:
                os.close(status)
            with process:
                end, output = _watch(process, told, scratch, limits, stop)
            said = os.read(told, 4096).decode(errors="replace")
            if said != "ok" and (said or end is None):
                raise OssiaError(_refused(said or output.text().strip().rpartition("\n")[2]))
        finally:
            os.close(told)
    exit_code = process.returncode
    return Ran(output.text(), end or _reason(exit_code, limits), exit_code)


def check() -> None:
    """Raise OssiaError unless code can be run here, locked down."""
    if (ran := run(_PROBE)).output != "locked\n":
        raise OssiaError(_refused(f"a test got through: {ran.output or ran.end}"))


# Three doors that must be shut.
_PROBE = """
import os, socket
for door in (lambda: open("/proc/self/environ"), socket.socket, os.fork):
    try:
        door()
    except PermissionError:
        continue
    print("not locked:", door)
    break
else:
    print("locked")
"""


def _refused(why: str) -> str:
    return f"Python code cannot be run safely on this machine: {why}"


def _job(code: str, scratch: Path, limits: Limits) -> dict[str, object]:
    """What the process reads: see `ossia.tools.python.jail.main`."""
    paths = sysconfig.get_paths()
    packages = list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
    own = (paths["stdlib"], paths["platstdlib"], f"{sys.base_prefix}/lib")
    return {
        "code": code,
        "scratch": str(scratch),
        "parent": os.getpid(),
        "user": next(_USERS),
        "limits": asdict(limits),
        "packages": packages,
        "readable": [*_LIBRARIES, *own, *packages],
    }


def _start(scratch: Path, job: IO[bytes], status: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[3]  # where this ossia is
    flags = ("-I", "-S", "-B", "-u", "-X", "utf8")
    environment = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "MPLBACKEND": "agg",
        "MALLOC_ARENA_MAX": "2",  # each reserves address space, which is limited
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
    return subprocess.Popen(
        [sys.executable, *flags, "-c", _BOOT, str(root), str(status)],
        stdin=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(status,),
        cwd=scratch,
        env=environment,
        start_new_session=True,
    )


class _Output:
    """The begin and the end of what is printed, `most` characters in all."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._head, self._tail, self._cut = b"", b"", 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        self._head += data[:room]
        kept = self._tail + data[room:]
        self._tail = kept[-self._half :]
        self._cut += len(kept) - len(self._tail)

    def text(self) -> str:
        cut = f"\n[... {self._cut} bytes left out ...]\n".encode() if self._cut else b""
        return (self._head + cut + self._tail).decode(errors="replace")


def _watch(
    process: subprocess.Popen[bytes],
    told: int,
    scratch: Path,
    limits: Limits,
    stop: threading.Event | None,
) -> tuple[str | None, _Output]:
    """Gather the output until the process ends, or kill it; then why. Its time begins when it says
    something to `told`: on a busy machine it may start long after.
    """
    assert process.stdout is not None
    output, prints = _Output(limits.output), True
    look = 0.0
    try:
        end = _await_start(told, stop)
        deadline = time.monotonic() + limits.seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while end is None:
                if prints and selector.select(_TICK_SECONDS):
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    output.add(data)
                    prints = bool(data)
                elif not prints and _has_ended(process):  # the code may have closed its output
                    break
                if (now := time.monotonic()) > look:
                    look = now + _TICK_SECONDS
                    end = _full(scratch, limits)
                if now > deadline and process.poll() is None:  # one that has ended was in time
                    end = f"it ran longer than {limits.seconds:g} s"
                elif stop is not None and stop.is_set():
                    end = "it was stopped"
    finally:
        process.kill()  # one process: it can start no other
    return end, output


def _await_start(told: int, stop: threading.Event | None) -> str | None:
    """Return once the process has locked itself down, or has ended; else why it is to be ended."""
    deadline = time.monotonic() + _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(told, selectors.EVENT_READ)
        while not selector.select(_TICK_SECONDS):
            if stop is not None and stop.is_set():
                return "it was stopped"
            if time.monotonic() > deadline:
                return f"it did not start within {_START_SECONDS:g} s"
    return None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TICK_SECONDS)
    return process.returncode is not None


def _reason(exit_code: int, limits: Limits) -> str | None:
    """Why a process that nobody killed here has ended by a signal."""
    if exit_code >= 0:
        return None
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it used the processor for more than {limits.cpu_seconds} s"
    return f"it ended by the signal {signal.Signals(-exit_code).name}"


def _full(scratch: Path, limits: Limits) -> str | None:
    """Whether the scratch folder holds more than it may, or what cannot be counted, in words."""
    size = entries = 0
    folders = [str(scratch)]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > limits.entries:
                        return f"it made more than {limits.entries} files"
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue  # the code has removed it meanwhile
        except OSError as error:
            return f"it made a folder that cannot be read ({error.strerror})"
    if size > limits.scratch:
        return f"its files hold more than {limits.scratch >> 20} MiB"
    return None


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A new folder, which is removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="ossia-python-"))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder whatever is in it: folders nested deeper than a path can name, or without
    any rights. Each moves up before it is emptied.
    """
    while found := [*os.scandir(folder)]:
        for entry in found:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in [*os.scandir(entry.path)]:
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, folder / uuid.uuid4().hex)
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
    os.rmdir(folder)
