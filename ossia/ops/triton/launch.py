"""How kernels are launched: on a card, by Triton's interpreter on the CPU, or recorded so that they
can be compiled without a card.

Triton decides when a kernel is defined whether it is interpreted, by TRITON_INTERPRET=1 in the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED: bool = knobs.runtime.interpret
T = TypeVar("T")
DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})


@dataclass(frozen=True)
class Card:
    """What block shapes and grids depend on.

    architecture: 10 * major + minor of the compute capability. processors: streaming
    multiprocessors, each of which should have work.
    """

    architecture: int
    processors: int


# The cards that kernels are compiled for without one at hand: A100, H100 and H200, B200.
CARDS = {80: Card(80, 108), 90: Card(90, 132), 100: Card(100, 148)}
_INTERPRETER = Card(90, 4)  # few programs, because the interpreter runs one after another


class Launch(NamedTuple):
    """A recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class _Recording:
    """Launches that were recorded for a card instead of run."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.launches: list[Launch] = []


_recording: _Recording | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel over a grid of up to three dimensions, none of them zero.

    options: its constexpr parameters, and Triton's own, such as num_warps. The parameter EARLY, of
    kernels that call `begin`, is set here.
    """
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    if "EARLY" in kernel.arg_names:
        options["EARLY"] = early = earliness(device)
        if early:
            options["launch_pdl"] = True
    if _recording is not None:
        _recording.launches.append(Launch(kernel, grid, arguments, options))
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the thread's current one
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


# By the first thread of a program.
_FETCH = tl.constexpr(
    """{ .reg .pred p; .reg .b32 t;
    mov.u32 t, %tid.x; setp.eq.u32 p, t, 0; setp.gt.and.s32 p, $2, 0, p;
    @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }"""
)


@triton.jit
def begin(EARLY: tl.constexpr):
    """Let the kernel that follows start, and wait for the one before.

    A kernel with the parameter EARLY starts, where the card can do it, while the one before still
    runs: up to this call it may read weights, and nothing that kernels write. Each of its programs
    must call this, or the next kernel would not know that the one before this one is done.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch(pointer, count, SIZE: tl.constexpr, EARLY: tl.constexpr):
    """Have `count` numbers of SIZE bytes each on their way into the L2 cache, if both where they
    begin and what they take are multiples of 16 bytes.
    """
    if EARLY == 2:
        address = pointer.to(tl.int64)
        size = (count * SIZE).to(tl.int32)
        size = tl.where((size | address.to(tl.int32)) % 16 == 0, size, 0)
        tl.inline_asm_elementwise(_FETCH, "=r,l,r", [address, size], tl.int32, False, 1)  # pyright: ignore[reportArgumentType]


@triton.jit
def begin_last(EARLY: tl.constexpr):
    """As `begin`, but the kernel that follows starts only when the one before is done: it may read
    what that one wrote.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@contextmanager
def recording(card: Card) -> Iterator[list[Launch]]:
    """Record the launches of operations on meta tensors, as they would run on that card.

    A meta tensor has no numbers, so an operation that waits for the device fails here.
    """
    global _recording
    _recording = _Recording(card)
    try:
        yield _recording.launches
    finally:
        _recording = None


def runs(x: Tensor, *others: Tensor | None) -> bool:
    """Whether kernels can compute with all of these: on one device that launches them, x of a
    floating type that they support, and no gradient needed.
    """
    device = x.device
    if x.dtype not in DTYPES or not launches_on(device):
        return False
    grad = torch.is_grad_enabled()
    for tensor in (x, *others):
        if tensor is not None and (tensor.device != device or (grad and tensor.requires_grad)):
            return False
    return True


def launches_on(device: torch.device) -> bool:
    """Whether kernels can be launched on a device."""
    if _recording is not None:
        return device.type in ("meta", "cuda")  # the latter if tensors are fake
    return device.type == ("cpu" if INTERPRETED else "cuda")


def card(device: torch.device) -> Card:
    """The card behind a device."""
    if _recording is not None:
        return _recording.card
    return _INTERPRETER if device.type == "cpu" else _card(device.index or 0)


def earliness(device: torch.device) -> int:
    """Whether kernels start while the one before still runs (programmatic dependent launch), which
    Hopper was the first to do: 0 no, 1 yes, 2 and they also fetch weights into the L2 cache then.
    OSSIA_EARLY_LAUNCH in the environment may be 0 or 1 instead.
    """
    interpreted = INTERPRETED and _recording is None
    return 0 if interpreted or card(device).architecture < 90 else _EARLIEST


def unusable(device: torch.device) -> str | None:
    """Why kernels cannot run on a CUDA device; None if they can."""
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA's cards, and this PyTorch is for AMD's"
    major, minor = torch.cuda.get_device_capability(device)
    if major < _OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"the {name} has compute capability {major}.{minor}, and the kernels need 8.0"
    return None


_EARLIEST = {"0": 0, "1": 1}.get(os.environ.get("OSSIA_EARLY_LAUNCH", ""), 2)
_OLDEST = 8  # Ampere: the first whose tensor cores multiply bfloat16


@lru_cache(maxsize=16)
def _card(index: int) -> Card:
    found = torch.cuda.get_device_properties(index)
    return Card(10 * found.major + found.minor, found.multi_processor_count)


def for_card(table: Mapping[int, T], device: torch.device) -> T:
    """The entry of a table by architecture that holds for a device's card: the one of the highest
    architecture that is not above the card's. The first must be for 80.
    """
    return table[max(least for least in table if least <= max(80, card(device).architecture))]


_zeros: dict[torch.device, Tensor] = {}


def counters(count: int, device: torch.device) -> Tensor:
    """int32 zeros, at least `count` of them, that kernels count in and leave at zero.

    They are shared by all kernels of a stream, and keep their address so that graphs can use them.
    """
    if device.type == "meta":
        return torch.zeros(count, dtype=torch.int32, device=device)
    zeros = _zeros.get(device)
    if zeros is None or len(zeros) < count:
        # Graphs hold the address of the old ones, which are therefore never freed.
        zeros = torch.zeros(max(_COUNTERS, 2 * count), dtype=torch.int32, device=device)
        _kept.append(zeros)
        _zeros[device] = zeros
    return zeros


_COUNTERS = 1 << 16
_kept: list[Tensor] = []


def ceil_div(count: int, size: int) -> int:
    """How many blocks of a size cover a count."""
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The least power of two that is not below a positive count."""
    return 1 << (count - 1).bit_length()
