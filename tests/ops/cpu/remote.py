"""A machine in another process, which can be under an emulator and can die without us.

Its memory is not ours: each tensor of a call is copied there, with memory that cannot be touched
behind its last byte, or before its first, so that one step beyond kills that process. What it
changed is copied back.

A call is a line, `name memories size... argument...`, and then the memories' bytes. A tensor is
`@memory:dtype:shape:strides`, a value of the native module `Name( argument... )`, a list `[
argument... ]`, and anything else as Python prints it. The answer is a line too, `ok result` or
`ExceptionName message`, and the same memories.
"""

import builtins
import ctypes
import subprocess
from collections.abc import Callable
from typing import IO, cast

from torch import Tensor

from ossia.ops import _native

FIELDS = {
    _native.Matrix: ("weight", "bias", "scales", "group"),
    _native.Stack: ("weight", "bias", "scales"),
    _native.Experts: ("gate_up", "down", "clamped", "limit", "alpha"),
    _native.Pages: ("keys", "values", "key_scales", "value_scales"),
    _native.Tables: ("page_table", "lengths", "query_lengths"),
    _native.Edits: (
        "rows",
        "lengths",
        "ids",
        "biases",
        "counts",
        "repetition",
        "frequency",
        "presence",
    ),
    _native.SamplingTable: (
        "scale",
        "top_k",
        "top_p",
        "log2_min_p",
        "uniforms",
        "bits",
        "edits",
    ),
}
"""What each value of the native module is made of: its constructor's arguments, in order."""


def _extent(tensor: Tensor) -> int:
    """Bytes from its first element to its last."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((count - 1) * step for count, step in steps)
    return (last + 1) * tensor.element_size()


class _Arguments:
    """The words of a call, and the memories they name by address and size. Tensors that begin at
    one address are one memory.
    """

    def __init__(self, arguments: tuple) -> None:
        self.sizes: dict[int, int] = {}
        self.words = [word for argument in arguments for word in self._words(argument)]

    def _words(self, argument: object) -> list[str]:
        if isinstance(argument, Tensor):
            return [self._tensor(argument)]
        if isinstance(argument, list):
            return ["[", *(word for item in argument for word in self._words(item)), "]"]
        if fields := FIELDS.get(type(argument)):
            parts = (self._words(getattr(argument, field)) for field in fields)
            return [f"{type(argument).__name__}(", *(w for part in parts for w in part), ")"]
        return [str(argument)]

    def _tensor(self, tensor: Tensor) -> str:
        address = tensor.data_ptr()
        self.sizes[address] = max(self.sizes.get(address, 0), _extent(tensor))
        memory = list(self.sizes).index(address)
        shape, strides = (
            "x".join(map(str, numbers)) for numbers in (tensor.shape, tensor.stride())
        )
        return f"@{memory}:{tensor.dtype}:{shape}:{strides}"


class Remote:
    """`cpu.Machine`, its calls served by `command`: worker.py, or the driver of native/tests."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def machine(self) -> _native.Machine:
        """Itself, for those who expect a machine: it serves the same calls."""
        return cast(_native.Machine, self)

    def __getattr__(self, name: str) -> Callable:
        return lambda *arguments: self._call(name, arguments)

    def _call(self, name: str, arguments: tuple) -> object:
        sent = _Arguments(arguments)
        before = [ctypes.string_at(*memory) if memory[1] else b"" for memory in sent.sizes.items()]
        sizes = map(str, sent.sizes.values())
        line = " ".join([name, str(len(before)), *sizes, *sent.words]) + "\n"
        status, result, after = self._exchange(line, before)
        for address, old, new in zip(sent.sizes, before, after, strict=True):
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
