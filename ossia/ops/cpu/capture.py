"""A step's native operations recorded, and run again without the interpreter between them.

After each matrix the interpreter's own code and data have left the processor's caches, so that
the few lines between two operations cost tens of microseconds: a quarter of a small model's token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ossia.ops._native import Recording
from ossia.ops.cpu.native import machine

_ALLOCATIONS = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided}


def capture(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None] | None]:
    """As `Backend.capture`; None where `step` asks torch for more than memory and views of it.

    Weights must stay where they are. Memory that the step takes is held as long as what is
    returned.
    """
    recording, used = Recording(), machine()
    with _Watch() as watch:
        recording.begin()
        try:
            result = step()
        finally:
            recording.end()
    if watch.foreign:
        return result, None
    return result, partial(_again, recording, watch.memory, used)


def _again(recording: Recording, *held: object) -> None:
    """Run it; what it refers to by address alone is `held` by who can."""
    recording.run()


class _Watch(TorchDispatchMode):
    """Holds on to the memory that torch gives, and notes whether torch computed anything."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[Tensor] = []
        self.foreign = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.memory.append(result)
        elif not func.is_view:
            self.foreign = True
        return result
