"""Experts on disk, read when a token is routed to them into slots that keep the most recently used.

This runs models larger than memory: a token uses four of gpt-oss-120b's 128 experts in a layer, and
the slots hold those that earlier tokens used. The system's page cache would do the same, but in
pages of 4 KB, one after another, and without telling dense weights from experts.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ossia.errors import OssiaError
from ossia.offload.reader import Job, Reader, Span
from ossia.ops.mxfp4 import MXFP4, NAN_SCALE
from ossia.system import huge_pages

# Experts being read: enough to keep a disk busy, and few compared with the slots.
AHEAD = 16
# Pieces in flight. More do not make a disk faster, and each occupies a processor for its copy.
THREADS = 4

_Key = tuple[int, int]  # layer, expert


@dataclass(frozen=True)
class StoredStack:
    """A uint8 tensor (experts, ...) in a file."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    is_scale: bool

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def expert_bytes(self) -> int:
        return torch.Size(self.shape[1:]).numel()

    def expert(self, index: int) -> Span:
        where = self.offset + index * self.expert_bytes
        without = (NAN_SCALE, "NaN in MXFP4") if self.is_scale else None
        return Span(self.file, where, self.expert_bytes, without)


@dataclass(frozen=True)
class StoredLayer:
    """Where the packed experts of a layer are stored: blocks and scales of gate_up, then of down.
    Their biases (experts, rows) are small and stay in memory.
    """

    stacks: Sequence[StoredStack]
    biases: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class ExpertReads:
    """A store's counters; the difference of two values counts what happened between them."""

    needed: int = 0  # experts that a layer needed in a step
    hits: int = 0  # those already in memory
    prefetched: int = 0  # experts whose prefetch began
    prefetch_hits: int = 0  # those that were needed before they were dropped
    bytes_read: int = 0
    seconds_waited: float = 0.0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.needed if self.needed else 1.0

    def summary(self) -> str:
        return (
            f"experts: {self.hit_rate:.0%} of {self.needed:,} were in memory when needed, "
            f"{self.bytes_read / 1e9:,.2f} GB read from disk, {self.seconds_waited:.1f} s waited"
        )

    def __sub__(self, before: ExpertReads) -> ExpertReads:
        return ExpertReads(
            **{name: value - vars(before)[name] for name, value in vars(self).items()}
        )


@dataclass(eq=False)
class _Held:
    """An expert in a slot, or being read into it."""

    key: _Key
    slot: int
    prefetched: bool
    passing: bool  # evicted first: read while one pass needs more experts than there are slots
    job: Job | None  # while it is being read


class ExpertStore:
    """`slots` of the experts in the layers' files, in memory.

    All layers have experts of the same shape. Calls for a layer run one at a time. Raises
    OssiaError if a file cannot be opened or an expert cannot be read.
    """

    def __init__(self, layers: Sequence[StoredLayer], slots: int, threads: int = THREADS) -> None:
        first = layers[0]
        shapes = {tuple(stack.shape for stack in layer.stacks) for layer in layers}
        assert len(shapes) == 1, "layers with experts of several shapes"
        assert slots > 0
        self.layers, self.slots = tuple(layers), slots
        arena = [huge_pages.zeros((slots, *stack.shape[1:]), torch.uint8) for stack in first.stacks]
        self._arena = arena
        self.gate_up, self.down = MXFP4(arena[0], arena[1]), MXFP4(arena[2], arena[3])
        self.biases: tuple[Tensor, Tensor] | None = None
        if first.biases is not None:
            of_gate_up, of_down = first.biases
            self.biases = (
                of_gate_up.new_empty(slots, of_gate_up.shape[1]),
                of_down.new_empty(slots, of_down.shape[1]),
            )
        self._free = deque(range(slots))
        self._held: OrderedDict[_Key, _Held] = OrderedDict()  # least recently used first
        self._coming: list[_Held] = []  # being read, cancelled ones included
        self._in_use: set[_Key] = set()
        self._wanted: list[_Key] = []
        self._flood = False  # whether one pass needs more experts than there are slots
        self._reads = ExpertReads()
        self._turn = threading.Lock()
        self._reader = Reader(threads)
        # Runs when the interpreter exits at the latest. The reader must not refer to the store.
        self.close = weakref.finalize(self, self._reader.close)
        self._reader.open({stack.file for layer in layers for stack in layer.stacks})

    @property
    def reads(self) -> ExpertReads:
        return replace(self._reads, bytes_read=self._reader.bytes_read)

    def __reduce__(self) -> NoReturn:
        raise OssiaError(
            "a model whose experts are read from disk cannot be copied or pickled: load it again"
        )

    def prefetch(self, layer: int, experts: Iterable[int]) -> None:
        """Prefetch these experts of the next layer, at low priority: after everything that the
        current layer still needs.
        """
        self._wanted = [(layer, expert) for expert in experts]

    def visit(self, layer: int, experts: Collection[int], use: Callable[[dict[int, int]], None]):
        """Call `use` with experts and their slots until each expert was used once: first those in
        memory, then the others as they arrive.
        """
        with self._turn:
            if not self.close.alive:
                raise OssiaError("the model's experts were closed: load it again")
            self._in_use = {(layer, expert) for expert in experts}
            try:
                self._visit(layer, experts, use)
            finally:
                self._in_use = set()

    def _visit(
        self, layer: int, experts: Collection[int], use: Callable[[dict[int, int]], None]
    ) -> None:
        self._cancel_prefetches()
        absent = deque(self._absent(layer, experts))
        # If one pass needs more experts than there are slots, plain LRU would miss every time; so
        # evict the newcomers first and keep the rest.
        self._flood = len(experts) * len(self.layers) > self.slots
        waiting = set(experts)
        while waiting:
            while absent and len(self._coming) < AHEAD and self._fetch((layer, absent[0])):
                absent.popleft()
            if not absent:
                self._prefetch()
            ready = {
                expert: held.slot
                for expert in waiting
                if (held := self._held.get((layer, expert))) is not None and held.job is None
            }
            if not ready:
                self._wait()
                continue
            use(ready)
            waiting -= ready.keys()
            for expert in ready:
                key = (layer, expert)
                self._in_use.discard(key)
                held = self._held[key]
                held.passing = held.passing and self._flood
                self._held.move_to_end(key, last=not held.passing)

    def _absent(self, layer: int, experts: Collection[int]) -> list[int]:
        """Experts that are neither in memory nor being read. Updates the counters."""
        self._settle()
        absent, present, right = [], 0, 0
        for expert in experts:
            held = self._held.get((layer, expert))
            if held is None:
                absent.append(expert)
                continue
            right += held.prefetched
            held.prefetched = False
            if held.job is None:
                present += 1
            else:
                self._reader.hurry(held.job)
        self._count(needed=len(experts), hits=present, prefetch_hits=right)
        return absent

    def _fetch(self, key: _Key, prefetches: Collection[_Key] = ()) -> bool:
        """Start to read an expert into a free slot or the least recently used one; False if all
        slots are in use. `prefetches` are read at low priority and do not evict each other.
        """
        self._settle()
        passing = False
        if self._free:
            slot = self._free.popleft()
        else:
            for old, held in self._held.items():
                if held.job is None and old not in self._in_use and old not in prefetches:
                    break
            else:
                return False
            del self._held[old]
            slot, passing = held.slot, self._flood
        layer, expert = key
        stored = self.layers[layer]
        if stored.biases is not None and self.biases is not None:
            for bias, own in zip(self.biases, stored.biases, strict=True):
                bias[slot] = own[expert]
        job = Job(
            f"expert {expert} of layer {layer}",
            [
                (stack.expert(expert), part[slot].data_ptr())
                for stack, part in zip(stored.stacks, self._arena, strict=True)
            ],
        )
        held = self._held[key] = _Held(key, slot, bool(prefetches), passing, job)
        self._coming.append(held)
        self._reader.submit(job, urgent=not prefetches)
        return True

    def _prefetch(self) -> None:
        wanted, self._wanted = self._wanted, []
        for key in wanted:
            if key not in self._held:
                if len(self._coming) >= AHEAD or not self._fetch(key, wanted):
                    return
                self._count(prefetched=1)

    def _cancel_prefetches(self) -> None:
        """Cancel prefetches in flight that turned out not to be needed."""
        for held in self._coming:
            if held.prefetched and held.key not in self._in_use and held.job is not None:
                self._reader.cancel(held.job)
                if held.job.cancelled and self._held.get(held.key) is held:
                    del self._held[held.key]

    def _settle(self) -> None:
        """Process finished jobs. Raises the error of a job that this call needs."""
        ended = [held for held in self._coming if held.job is not None and held.job.settled]
        for held in ended:
            assert held.job is not None
            self._coming.remove(held)
            job, held.job = held.job, None
            if not job.done:
                if self._held.get(held.key) is held:
                    del self._held[held.key]
                self._free.append(held.slot)
                if job.error is not None and held.key in self._in_use:
                    raise job.error

    def _wait(self) -> None:
        jobs = [held.job for held in self._coming if held.job is not None]
        assert jobs, "nothing to wait for"
        start = time.perf_counter()
        self._reader.wait(lambda: any(job.settled for job in jobs))
        self._count(seconds_waited=time.perf_counter() - start)
        self._settle()

    def _count(self, **more: float) -> None:
        self._reads = replace(
            self._reads, **{name: vars(self._reads)[name] + value for name, value in more.items()}
        )
