"""A machine in another process, which can be under an emulator and can die without us.

Its memory is not ours: what the addresses of a call name is copied there, each tensor with memory
that cannot be touched behind its last byte, or before its first, so that one step beyond kills that
process. What it changed is copied back.

A call is a line, `name memories size... argument...` with the arguments as Python prints them and
`@i` for the address of memory i, and then the memories' bytes. The answer is a line too,
`ok result` or `ExceptionName message`, and the same memories.
"""

import builtins
import ctypes
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO
from unittest import mock

import torch

_LEAST_ADDRESS = 1 << 32  # sizes are smaller

_noted: dict[int, list[weakref.ref[torch.Tensor]]] = {}
"""The tensors that begin at an address."""


@contextmanager
def noting_addresses() -> Iterator[None]:
    """Meanwhile each tensor asked for its address is noted: the calls say where, not how much."""
    address_of = torch.Tensor.data_ptr

    def data_ptr(tensor: torch.Tensor) -> int:
        address = address_of(tensor)
        _noted.setdefault(address, []).append(weakref.ref(tensor))
        return address

    with mock.patch.object(torch.Tensor, "data_ptr", data_ptr):
        yield
    _noted.clear()


def _extent(address: int) -> int:
    """Bytes up to the end of the longest tensor that begins there; 0 where none does, or no more:
    what lies in freed memory now is not ours to copy.
    """
    alive = [tensor for note in _noted.get(address, ()) if (tensor := note()) is not None]
    extents = [0]
    for tensor in alive:
        if tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((count - 1) * step for count, step in steps)
            extents.append((last + 1) * tensor.element_size())
    return max(extents)


class Remote:
    """`cpu.Machine`, its calls served by `command`: worker.py, or the driver of native/tests."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __getattr__(self, name: str) -> Callable:
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name: str, arguments: tuple) -> object:
        addresses: list[int] = []
        words = []
        for argument in arguments:
            if type(argument) is not int or argument < _LEAST_ADDRESS:
                words.append(str(argument))
                continue
            assert _extent(argument), "an address of no tensor"
            if argument not in addresses:
                addresses.append(argument)
            words.append(f"@{addresses.index(argument)}")
        sizes = [_extent(address) for address in addresses]
        before = [ctypes.string_at(*memory) for memory in zip(addresses, sizes, strict=True)]
        line = " ".join([name, str(len(sizes)), *map(str, sizes), *words]) + "\n"
        status, result, after = self._exchange(line, before)
        for address, old, new in zip(addresses, before, after, strict=True):
            if new != old:
                ctypes.memmove(address, new, len(new))
        if status != "ok":
            raise getattr(builtins, status)(result)
        return result

    def _exchange(self, line: str, memories: list[bytes]) -> tuple[str, str, list[bytes]]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(b"".join([line.encode(), *memories]))
            stdin.flush()
            status, _, result = stdout.readline().decode().rstrip("\n").partition(" ")
            after = [_read(stdout, len(memory)) for memory in memories]
        except (BrokenPipeError, EOFError):
            status = ""
        if not status:
            stdin.close()
            stdout.close()
            code = self._process.wait()
            self._process = None  # the next call begins anew
            raise AssertionError(f"{' '.join(self._command)} died, exit status {code}, of: {line}")
        return status, result, after


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
