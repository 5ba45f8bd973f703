"""Numbers of the host to a device that is at work, without waiting for that work.

On CUDA a copy from pageable memory waits for all that its stream was given before. One from pinned
memory does not, and torch keeps that memory from other uses until the copy has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PINNED = frozenset({"cuda"})  # types of devices that copy from pinned memory


def send(source: Tensor, target: Tensor) -> None:
    """Copy a tensor on the CPU into one of its shape. It may change at once after that."""
    pinned = target.device.type in _PINNED
    target.copy_(source.pin_memory() if pinned else source, non_blocking=pinned)


def sent(
    numbers: Sequence[float] | Sequence[int] | Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A new tensor on the device: numbers (n,), or a tensor on the CPU."""
    source = torch.as_tensor(numbers, dtype=dtype)
    target = torch.empty_like(source, device=device)
    send(source, target)
    return target
