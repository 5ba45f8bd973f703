"""Memory for large tensors that are read often."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


def anonymous(size: int) -> mmap.mmap:
    """`size` bytes, at least one, of anonymous memory, in huge pages if the system has them: they
    cause fewer page faults and TLB misses.
    """
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def zeros(shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.zeros`, in `anonymous` memory."""
    count = math.prod(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(anonymous(count * dtype.itemsize), dtype=dtype).view(shape)


def copy(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the CPU, in `anonymous` memory."""
    return zeros(tensor.shape, tensor.dtype).copy_(tensor)
