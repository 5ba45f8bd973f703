"""Copies host memory and files to a GPU through pinned buffers: threads fill some while the GPU's
copy engine empties others.

From memory that is not pinned, the driver copies through one small buffer, so that the host's copy
and the bus wait for each other.
"""

from __future__ import annotations

import ctypes
import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, Self

import torch
from torch import Tensor

PIECE = 8 << 20  # bytes of a buffer: a copy that long runs at the speed of the bus
BUFFERS = 8
# A thread copies some 5 to 10 GB/s from the page cache, and a bus takes up to 50.
THREADS = 8


class Source(Protocol):
    """Bytes on the host. `read` may be called in several threads at a time."""

    @property
    def nbytes(self) -> int: ...

    def read(self, start: int, buffer: Tensor) -> None:
        """Fill a uint8 buffer with the bytes from `start` on. Raises OssiaError if it cannot."""
        ...


@dataclass(frozen=True)
class Memory:
    """The bytes of a contiguous tensor on the CPU."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def read(self, start: int, buffer: Tensor) -> None:
        # Without the interpreter lock, and in this thread alone.
        ctypes.memmove(buffer.data_ptr(), self.tensor.data_ptr() + start, buffer.nbytes)


class Sent(Protocol):
    """A copy under way, as a torch.cuda.Event behind it."""

    def synchronize(self) -> None: ...


class Link(Protocol):
    """The way to a device. Copies take place in the order in which they are sent."""

    @property
    def device(self) -> torch.device: ...

    def buffer(self, size: int) -> Tensor:
        """Memory, uint8, pinned if it can be."""
        ...

    def begin(self) -> None:
        """Have later copies wait for what the current stream has been given until now: it may
        still use the memory that they write to.
        """
        ...

    def send(self, source: Tensor, target: Tensor) -> Sent:
        """Copy a buffer, without waiting. It may be filled again once the copy has taken place."""
        ...

    def receive(self, sent: Sent) -> None:
        """Have what the current stream is given from now on wait for a copy."""
        ...


class CUDALink:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def buffer(self, size: int) -> Tensor:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # no more memory may be locked: then the driver makes the copies
            return torch.empty(size, dtype=torch.uint8)

    def begin(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def send(self, source: Tensor, target: Tensor) -> Sent:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event

    def receive(self, sent: Sent) -> None:
        assert isinstance(sent, torch.cuda.Event)
        torch.cuda.current_stream(self.device).wait_event(sent)


def link_to(device: torch.device) -> Link | None:
    """The way to a device; None to one whose memory is the host's."""
    return CUDALink(device) if device.type == "cuda" else None


class Arriving:
    """A tensor on its way to the device."""

    def __init__(self, link: Link, target: Tensor, pieces: list[Future[Sent]]) -> None:
        self._link, self._target, self._pieces = link, target, pieces
        self.nbytes = target.nbytes

    def tensor(self) -> Tensor:
        """The tensor, for the current stream. Waits until all of it has been read, not until it is
        on the device. Raises what its source raised.
        """
        for piece in self._pieces:
            self._link.receive(piece.result())
        return self._target


class Upload:
    """Sends tensors to a device; a context manager, whose end waits for what is under way."""

    def __init__(
        self, link: Link, *, piece: int = PIECE, buffers: int = BUFFERS, threads: int = THREADS
    ) -> None:
        self._link, self._piece = link, piece
        # Each with the copy from it that was sent last.
        self._buffers: SimpleQueue[tuple[Tensor, Sent | None]] = SimpleQueue()
        for _ in range(buffers):
            self._buffers.put((link.buffer(piece), None))
        self._count = buffers
        self._threads = ThreadPoolExecutor(
            min(threads, os.cpu_count() or 1), thread_name_prefix="ossia-upload"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _ in range(self._count):
            _, sent = self._buffers.get()
            if sent is not None:
                sent.synchronize()

    def start(self, source: Source, shape: tuple[int, ...], dtype: torch.dtype) -> Arriving:
        """Send a tensor of this shape; its memory on the device is allocated now."""
        target = torch.empty(shape, dtype=dtype, device=self._link.device)
        assert target.nbytes == source.nbytes, f"{source.nbytes} bytes are not {shape} of {dtype}"
        if not source.nbytes:
            return Arriving(self._link, target, [])
        self._link.begin()
        raw = target.view(-1).view(torch.uint8)
        pieces = [
            self._threads.submit(self._send, source, i * self._piece, part)
            for i, part in enumerate(raw.split(self._piece))
        ]
        assert len(pieces) == math.ceil(source.nbytes / self._piece)
        return Arriving(self._link, target, pieces)

    def _send(self, source: Source, start: int, target: Tensor) -> Sent:
        buffer, sent = self._buffers.get()
        try:
            if sent is not None:
                sent.synchronize()
            filled = buffer[: len(target)]
            source.read(start, filled)
            with torch.inference_mode(target.is_inference()):
                sent = self._link.send(filled, target)
            return sent
        finally:
            self._buffers.put((buffer, sent))
