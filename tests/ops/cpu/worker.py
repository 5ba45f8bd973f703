"""Serves the calls of a native machine as remote.py describes: worker.py MODULE THREADS ISA EDGE.

Imports nothing of ossia but the module, so that it starts at once.
"""

import ast
import ctypes
import mmap
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Fenced:
    """A copy of `data` that ends, or begins, where nothing may be touched."""

    def __init__(self, data: bytes, edge: str) -> None:
        self.size = len(data)
        inner = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        begin = mmap.PAGESIZE + (inner - self.size if edge == "end" else 0)
        self.address = self._start + begin
        ctypes.memmove(self.address, data, self.size)
        for page in (0, mmap.PAGESIZE + inner):
            if libc.mprotect(self._start + page, mmap.PAGESIZE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def data(self) -> bytes:
        return ctypes.string_at(self.address, self.size)


class Tensor:
    """What the native module reads of a torch tensor."""

    is_cpu = True

    def __init__(self, word: str, memories: list[Fenced]) -> None:
        memory, self.dtype, shape, strides = word.removeprefix("@").split(":")
        self._address = memories[int(memory)].address
        self.shape, self._strides = (
            tuple(map(int, filter(None, numbers.split("x")))) for numbers in (shape, strides)
        )

    def data_ptr(self) -> int:
        return self._address

    def stride(self) -> tuple[int, ...]:
        return self._strides


def read(words: Iterator[str], module, memories: list[Fenced]) -> list:
    """The arguments up to a closing bracket, or all."""
    arguments = []
    for word in words:
        if word in (")", "]"):
            break
        if word.startswith("@"):
            arguments.append(Tensor(word, memories))
        elif word == "[":
            arguments.append(read(words, module, memories))
        elif word.endswith("("):
            make = getattr(module, word.removesuffix("("))
            arguments.append(make(*read(words, module, memories)))
        else:
            arguments.append(float(word) if word in ("inf", "nan") else ast.literal_eval(word))
    return arguments


def serve(module, machine, edge: str) -> None:
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while line := stdin.readline().decode():
        name, count, *words = line.split()
        sizes, words = words[: int(count)], words[int(count) :]
        memories = [Fenced(stdin.read(int(size)), edge) for size in sizes]
        try:
            arguments = read(iter(words), module, memories)
            member = getattr(machine, name)
            answer = f"ok {member(*arguments) if callable(member) else member}"
        except Exception as error:
            answer = f"{type(error).__name__} {error}"
        stdout.write(answer.splitlines()[0].encode() + b"\n")
        for memory in memories:
            stdout.write(memory.data())
        stdout.flush()


if __name__ == "__main__":
    path, threads, isa, edge = sys.argv[1:]
    spec = spec_from_file_location("_native", path)
    assert spec is not None
    assert spec.loader is not None
    native = module_from_spec(spec)
    spec.loader.exec_module(native)
    serve(native, native.Machine(int(threads), isa), edge)
