"""The limits of a card: its memory's read bandwidth, its matrix products, and copies to it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ossia
from ossia.insight.hardware import Hardware
from ossia.measure import memory
from ossia.measure.gpu.cases import Suite
from ossia.measure.gpu.parts import reason, seconds
from ossia.system.memory import free_memory

_KEYS = (
    *("card", "memory_bytes", "free_bytes"),
    *("read_bytes_per_second", "operations_per_second", "copy_bytes_per_second"),
)
_TRIES = 5
_ROWS = 1 << 10


def measure(device: torch.device, suite: Suite) -> dict[str, Any]:
    """The card, its limits in bytes and FLOP per second, and the versions of what runs on it. What
    cannot be measured is None, and `failed` says why.

    Bandwidth is the best of a sum and of a product of a matrix and a vector over memory far larger
    than any cache; products are square, in bfloat16.
    """
    found = unknown({})
    for key, work in {
        "card": lambda: _name(device),
        "memory_bytes": lambda: _total(device),
        "free_bytes": lambda: free_memory(device),
        "read_bytes_per_second": lambda: _read(device, suite.buffer_bytes),
        "operations_per_second": lambda: _multiply(device, suite.product),
        "copy_bytes_per_second": lambda: _copy(device, suite.buffer_bytes // 4),
        "versions": _versions,
    }.items():
        try:
            found[key] = work()
        except Exception as error:
            found["failed"][key] = reason(error)
    return found


def unknown(failed: dict[str, str]) -> dict[str, Any]:
    """What `measure` returns where nothing can be measured."""
    return {**dict.fromkeys(_KEYS), "versions": {}, "failed": failed}


def hardware(record: dict[str, Any]) -> Hardware | None:
    """The card of a record, as a roofline takes it; None if its bandwidth is unknown."""
    if record["read_bytes_per_second"] is None:
        return None
    return Hardware(
        str(record["card"]),
        record["memory_bytes"],
        record["read_bytes_per_second"],
        record["operations_per_second"],
        ("measured by `ossia bench gpu`",),
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"


def _total(device: torch.device) -> int:
    """Bytes of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory.total()


def allocated(device: torch.device, *, most: bool = False) -> int:
    """Bytes that this process's tensors take on a card, now or at most; of a CPU all anonymous
    memory.
    """
    if device.type != "cuda":
        return memory.resident("Anon")
    return torch.cuda.max_memory_allocated(device) if most else torch.cuda.memory_allocated(device)


def _best(device: torch.device, work: Any) -> float:
    work()
    return min(seconds(device, work) for _ in range(_TRIES))


def _read(device: torch.device, size: int) -> float:
    words = torch.ones(size // 8, dtype=torch.int64, device=device)
    matrix = words.view(torch.bfloat16).view(_ROWS, -1)
    vector = torch.zeros(matrix.shape[1], dtype=torch.bfloat16, device=device)
    return size / min(_best(device, words.sum), _best(device, lambda: torch.mv(matrix, vector)))


def _multiply(device: torch.device, size: int) -> float:
    """Of random numbers: a GPU multiplies equal ones faster, because fewer bits change."""
    a, b = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    return 2 * size**3 / _best(device, lambda: torch.mm(a, b))


def _copy(device: torch.device, size: int) -> float | None:
    """Bytes per second from pinned memory of the host; None without a card."""
    if device.type != "cuda":
        return None
    source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / _best(device, lambda: target.copy_(source, non_blocking=True))


def _versions() -> dict[str, str]:
    found = {"ossia": ossia.__version__, "python": platform.python_version()}
    found["torch"] = str(torch.__version__)  # with its build, which its metadata may leave out
    for package in ("triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
