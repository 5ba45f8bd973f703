"""Threads that read pieces of files into memory without the page cache: urgent jobs first, then
prefetches.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ossia.errors import OssiaError

# The unit of O_DIRECT: offsets and addresses are multiples of it. No disk has larger sectors.
ALIGNMENT = 4096
# Bytes of one read: enough for a disk to stream, yet few enough that the copy comes from cache and
# that a prefetch in flight delays urgent reads little.
PIECE = 1 << 20


@dataclass(frozen=True)
class Span:
    """Bytes of a file. `without` is a byte that they must not contain, and its meaning."""

    file: Path
    offset: int
    nbytes: int
    without: tuple[int, str] | None = None


@dataclass(eq=False)
class Job:
    """Spans to read, each to its address. Then it is `done`, or `error` says why not."""

    name: str
    spans: list[tuple[Span, int]]
    error: OssiaError | None = None
    done: bool = False
    cancelled: bool = False
    in_flight: int = 0
    pieces: deque[tuple[Span, int, int]] = field(default_factory=deque)  # and begin, address

    def __post_init__(self) -> None:
        for span, address in self.spans:
            first = span.offset // ALIGNMENT * ALIGNMENT
            for begin in range(first, span.offset + span.nbytes, PIECE):
                self.pieces.append((span, begin, address))

    @property
    def settled(self) -> bool:
        """Whether no thread will touch its memory again."""
        return self.done or (not self.in_flight and (self.cancelled or self.error is not None))


class Reader:
    """Reads `threads` pieces at a time. Any thread may submit jobs, but not one of a forked child,
    where the reading threads do not exist: that raises OssiaError.
    """

    def __init__(self, threads: int) -> None:
        self.bytes_read = 0
        self._process = os.getpid()
        self._files: dict[Path, _File] = {}
        self._urgent: deque[Job] = deque()
        self._later: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"ossia-read-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, files: Iterable[Path]) -> None:
        """Open files to read from; afterwards they may be renamed or deleted."""
        for path in files:
            if path not in self._files:
                self._files[path] = _File(path)

    def submit(self, job: Job, urgent: bool) -> None:
        self._check_process()
        with self._changed:
            (self._urgent if urgent else self._later).append(job)
            self._changed.notify_all()

    def hurry(self, job: Job) -> None:
        """Make a job urgent."""
        self._check_process()
        with self._changed:
            if job in self._later:
                self._later.remove(job)
                self._urgent.append(job)

    def cancel(self, job: Job) -> None:
        """Do not start further pieces; the job is `settled` once those in flight have finished. A
        job whose last piece is in flight completes.
        """
        self._check_process()
        with self._changed:
            job.cancelled = bool(job.pieces)
            for queue in (self._urgent, self._later):
                if job in queue:
                    queue.remove(job)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Block until a change of jobs makes `ready` true."""
        self._check_process()
        with self._changed:
            self._changed.wait_for(ready)

    def close(self) -> None:
        """Stop each thread after its current piece, and close the files."""
        if self._process == os.getpid():
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for thread in self._threads:
                if thread is not threading.current_thread():  # the garbage collector may run here
                    thread.join()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _check_process(self) -> None:
        """A lock of the parent's threads may be held for ever here, so look before taking it."""
        if self._process != os.getpid():
            raise OssiaError(
                "experts cannot be read from disk in a process forked from the one that loaded the "
                "model: load it here, or with expert_memory all"
            )

    def _work(self) -> None:
        buffer = mmap.mmap(-1, PIECE)  # aligned, unlike malloc's memory
        while (taken := self._take()) is not None:
            job, (span, begin, address) = taken
            error = None
            try:
                self._read(span, begin, address, buffer)
            except OSError as failure:
                reason = failure.strerror or str(failure)
                error = OssiaError(f"cannot read {job.name} from {span.file}: {reason}")
            except ValueError as failure:
                error = OssiaError(f"{span.file}: {job.name} {failure}; copy the file again")
            self._finish(job, error)

    def _take(self) -> tuple[Job, tuple[Span, int, int]] | None:
        """The next piece, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._urgent or self._later)
            if self._stopped:
                return None
            queue = self._urgent or self._later
            job = queue[0]
            piece = job.pieces.popleft()
            job.in_flight += 1
            if not job.pieces:
                queue.popleft()
            return job, piece

    def _finish(self, job: Job, error: OssiaError | None) -> None:
        with self._changed:
            job.in_flight -= 1
            job.error = job.error or error
            if job.error:
                job.pieces.clear()
                for queue in (self._urgent, self._later):
                    if job in queue:
                        queue.remove(job)
            elif not job.pieces and not job.in_flight and not job.cancelled:
                job.done = True
            if job.settled:
                self._changed.notify_all()

    def _read(self, span: Span, begin: int, address: int, buffer: mmap.mmap) -> None:
        """Read the piece at `begin` and copy its share of the span to its place."""
        first, last = max(begin, span.offset), min(begin + PIECE, span.offset + span.nbytes)
        read = self._files[span.file].read_into(buffer, begin, last - begin)
        if read < last - begin:
            raise ValueError(f"ends at byte {last}, the file now at {begin + read}")
        if span.without is not None:
            byte, meaning = span.without
            if buffer.find(bytes([byte]), first - begin, last - begin) >= 0:
                raise ValueError(f"has a byte {byte}, which is {meaning}")
        source = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + first - begin
        # Without the interpreter lock, like the read itself.
        ctypes.memmove(address + first - span.offset, source, last - first)
        with self._changed:
            self.bytes_read += last - first


class _File:
    """An open file, read without the page cache where the file system supports it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(path, flags)
            self.direct = hasattr(os, "O_DIRECT") and self._reopen(path, flags | os.O_DIRECT)
        except OSError as error:
            raise OssiaError(f"cannot read {path}: {error.strerror}") from error

    def _reopen(self, path: Path, flags: int) -> bool:
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without it
                raise
            return False
        os.close(self._descriptor)
        self._descriptor = descriptor
        return True

    def read_into(self, buffer: mmap.mmap, offset: int, needed: int) -> int:
        """Read at least `needed` bytes from an aligned offset; fewer only at end of file."""
        done = 0
        with memoryview(buffer) as view:
            while done < needed:
                # Whole units: past the end of the file a read comes back short.
                size = -(-(needed - done) // ALIGNMENT) * ALIGNMENT
                with view[done : done + size] as part:
                    count = os.preadv(self._descriptor, [part], offset + done)
                done += count
                if count % ALIGNMENT or not count:
                    break
        if not self.direct and hasattr(os, "posix_fadvise"):  # keep it out of the page cache
            os.posix_fadvise(self._descriptor, offset, done, os.POSIX_FADV_DONTNEED)
        return done

    def close(self) -> None:
        os.close(self._descriptor)
