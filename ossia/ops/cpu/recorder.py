"""A step's native operations recorded, and replayed without the interpreter between them.

Each matrix evicts the interpreter's code and data from the caches, so the few lines between two
operations cost tens of microseconds: a quarter of a small model's decode time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ossia.ops._native import Machine, Recording
from ossia.ops.backend import Recorded, Recorder
from ossia.ops.cpu.native import machine

# Beyond these batch sizes the interpreter's share is small, and the memory of a recording is not.
_MOST = 16

# Functions that neither compute nor copy, unless what they return has memory of its own.
_VIEWS = {
    "__get__", "__getitem__", "contiguous", "data_ptr", "dim", "flatten", "float", "int",
    "is_contiguous", "long", "numel", "size", "stride", "unflatten", "view",
}  # fmt: skip
_ALLOCATIONS = {"empty", "empty_like"}


class CPURecorder(Recorder):
    """Records native calls, and keeps the tensors that they use alive."""

    buckets = tuple(range(1, _MOST + 1))  # a recording of each size costs little: nothing is padded

    def record(self, step: Callable[[], Tensor]) -> Recorded | None:
        """As Recorder.record; None where `step` has torch compute anything."""
        # The first run may compute what is cached from then on, such as RoPE's frequencies.
        return _recorded(step) or _recorded(step)


def _recorded(step: Callable[[], Tensor]) -> Recorded | None:
    recording, used = Recording(), machine()
    with _Watch() as watch:
        recording.begin()
        try:
            result = step()
        finally:
            recording.end()
    return None if watch.foreign else Recorded(result, partial(_replay, recording, used))


def _replay(recording: Recording, _used: Machine) -> None:
    """Replay it; the machine has to outlive it."""
    recording.run()


class _Watch(TorchFunctionMode):
    """Notes whether torch computed anything."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in _ALLOCATIONS and (name not in _VIEWS or _copied(result, args)):
            self.foreign = True
        return result


def _copied(result: object, args: tuple) -> bool:
    """Whether what should have been a view has memory of its own."""
    source = args[0] if args else None
    if not isinstance(result, Tensor) or not isinstance(source, Tensor):
        return False
    return result.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
