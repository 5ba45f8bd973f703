"""How fast memory is read, measured in a moment."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

_BYTES = 256 << 20  # more than caches hold
_RUNS = 3


@lru_cache(maxsize=16)
def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that a sum reads of a device's memory, on the CPU with torch's threads: the
    best of a few runs.
    """
    numbers = torch.zeros(_BYTES // 8, dtype=torch.int64, device=device)

    def run() -> float:
        start = time.perf_counter()
        numbers.sum().item()  # waits for the device
        return time.perf_counter() - start

    return _BYTES / min(run() for _ in range(1 + _RUNS))
