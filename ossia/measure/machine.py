"""The limits of this machine: read bandwidth and matrix products, and a description of it."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia import ops
from ossia.config import SwiGLU
from ossia.measure import memory
from ossia.measure.speed import Spread
from ossia.ops import ExpertWeights, Routing
from ossia.ops.mxfp4 import BLOCK, MXFP4
from ossia.system.memory import available_memory

if TYPE_CHECKING:
    from ossia.ops.cpu import Machine

BUFFER_BYTES = 1 << 30  # far larger than any cache
_TOKENS, _SIZE = 512, 2880  # of the matrix products; the size is gpt-oss's hidden size
_MATRIX_FLAGS = re.compile(
    "avx2|fma|f16c|avx512(f|bw|vl|_vnni|_bf16|_fp16)|avx_vnni|amx_(tile|bf16|int8)"  # x86
    "|asimd|asimddp|i8mm|bf16|sve|sve2"  # ARM
)
_SECONDS = 0.2  # least duration of a measurement


class Bandwidth:
    """Bytes per second of one pass over memory, by the native kernels if built, else by torch.

    Each call is a measurement. The object holds `BUFFER_BYTES` of anonymous memory.
    """

    def __init__(self) -> None:
        self._words = torch.ones(BUFFER_BYTES // 8, dtype=torch.int64)

    def __call__(self, machine: Machine | None = None) -> float:
        """With all threads, or with those of another `Machine`."""
        if machine is None:
            machine = _native()
        start = time.perf_counter()
        if machine is None:
            self._words.sum()
        else:
            machine.sum(self._words)
        return BUFFER_BYTES / (time.perf_counter() - start)


def _native() -> Machine | None:
    """This process's thread pool; None where the kernels were not built."""
    try:
        from ossia.ops import cpu
    except ImportError:
        return None
    return cpu.machine()


def read_rates(turns: int = 5) -> dict[str, Spread]:
    """Bytes read per second by "one" thread and by "all"; by "all" only without the kernels."""
    bandwidth, all_threads = Bandwidth(), _native()
    machines = {"all": all_threads}
    if all_threads is not None:
        from ossia.ops.cpu import Machine

        machines = {"one": Machine(1, all_threads.isa), **machines}
    rates: dict[str, list[float]] = {name: [] for name in machines}
    for _ in range(turns):
        for name, machine in machines.items():
            rates[name].append(bandwidth(machine))
    return {name: Spread.of(values) for name, values in rates.items()}


def matrix_rates(backend: str = "auto", turns: int = 5) -> dict[str, Spread]:
    """FLOP/s of matrix products as large as a model's layers, by torch and by the backend."""
    with torch.inference_mode():
        products = _products(ops.select(backend))
        rates: dict[str, list[float]] = {product.name: [] for product in products}
        for _ in range(turns):
            for product in products:
                rates[product.name].append(_rate(product))
    return {name: Spread.of(values) for name, values in rates.items()}


@dataclass(frozen=True)
class _Product:
    name: str
    operations: int  # a multiplication and an addition count as two
    run: Callable[[], Tensor]


def _products(backend: ops.Backend) -> list[_Product]:
    def dense(dtype: torch.dtype, linear: Callable[[Tensor, Tensor], Tensor]):
        x = torch.randn(_TOKENS, _SIZE, dtype=dtype)
        weight = torch.randn(_SIZE, _SIZE, dtype=dtype)
        return 2 * _TOKENS * _SIZE * _SIZE, lambda: linear(x, weight)

    def experts():
        count, chosen = 8, 4
        blocks = [
            torch.randint(256, (count, rows, _SIZE // BLOCK, BLOCK // 2), dtype=torch.uint8)
            for rows in (2 * _SIZE, _SIZE)
        ]
        gate_up, down = (MXFP4(b, torch.full(b.shape[:-1], 118, dtype=torch.uint8)) for b in blocks)
        x = torch.randn(_TOKENS, _SIZE, dtype=torch.bfloat16)
        ids = torch.rand(_TOKENS, count).topk(chosen).indices
        weights = torch.full((_TOKENS, chosen), 1 / chosen)
        operations = 2 * _TOKENS * chosen * 3 * _SIZE * _SIZE
        stack = ExpertWeights(gate_up, None, down, None, SwiGLU())
        return operations, lambda: backend.moe(x, Routing(ids, weights), stack)

    return [
        _Product("torch float32", *dense(torch.float32, F.linear)),
        _Product("torch bfloat16", *dense(torch.bfloat16, F.linear)),
        _Product(f"{backend.name} bfloat16", *dense(torch.bfloat16, backend.linear)),
        _Product(f"{backend.name} MXFP4 experts", *experts()),
    ]


def _rate(product: _Product) -> float:
    product.run()
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        product.run()
        runs += 1
    return runs * product.operations / elapsed


@dataclass(frozen=True)
class Description:
    """A machine, as far as the system describes it.

    kernels: the instruction set of the native kernels, None where they were not built.
    """

    processor: str
    instruction_sets: tuple[str, ...]
    kernels: str | None
    threads: int
    processors: int | None
    memory_bytes: int
    available_bytes: int | None
    transparent_huge_pages: str | None
    reserved_huge_pages: int
    torch: str


def describe() -> Description:
    """This machine. Raises OssiaError where the system does not say how much memory it has."""
    machine = _native()
    return Description(
        processor=_field("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor(),
        instruction_sets=tuple(_instruction_sets()),
        kernels=machine.isa if machine else None,
        threads=machine.threads if machine else torch.get_num_threads(),
        processors=os.cpu_count(),
        memory_bytes=memory.total(),
        available_bytes=available_memory(),
        transparent_huge_pages=_field("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        reserved_huge_pages=int(_field("/proc/meminfo", r"HugePages_Total:\s+(\d+)") or 0),
        torch=torch.__version__,
    )


def record(
    found: Description, reads: dict[str, Spread], products: dict[str, Spread]
) -> dict[str, Any]:
    """The machine and its limits as JSON."""
    return {
        **asdict(found),
        "read_bytes_per_second": {name: asdict(spread) for name, spread in reads.items()},
        "operations_per_second": {name: asdict(spread) for name, spread in products.items()},
    }


def _instruction_sets() -> list[str]:
    """The processor's instruction sets that matter for matrix kernels."""
    flags = (_field("/proc/cpuinfo", r"(?:flags|Features)\s*:\s*(.+)") or "").split()
    return [flag for flag in flags if _MATRIX_FLAGS.fullmatch(flag)]


def _field(path: str, pattern: str) -> str | None:
    """The first match in a system file; None if there is none, or no such file."""
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None
