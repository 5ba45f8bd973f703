"""The store of experts on disk: what is in a slot is what is in the file, and what leaves first."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import OssiaError
from ossia.offload import store as stores
from ossia.offload.reader import ALIGNMENT, PIECE, Job, Reader, Span
from ossia.offload.store import ExpertStore, StoredLayer, StoredStack

EXPERTS, LAYERS = 6, 3
SHAPES = ((EXPERTS, 8, 3, 16), (EXPERTS, 8, 3), (EXPERTS, 96, 1, 16), (EXPERTS, 96, 1))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[StoredLayer]:
    """Three layers in two files, at offsets that no page begins at."""
    folder = tmp_path_factory.mktemp("stacks")
    generator = torch.Generator().manual_seed(0)
    files, found = [folder / "a", folder / "b"], []
    for index in range(LAYERS):
        file = files[index % 2]
        stacks = []
        with file.open("ab") as target:
            for shape in SHAPES:
                target.write(b"x" * 37)
                values = torch.randint(0, 255, shape, generator=generator, dtype=torch.uint8)
                stacks.append(StoredStack(file, target.tell(), shape, len(shape) == 3))
                target.write(bytes(values.flatten().tolist()))
        bias = torch.randn(2, EXPERTS, 5, generator=generator)
        found.append(StoredLayer(stacks, (bias[0], bias[1])))
    return found


class Opened:
    """A store whose slots are compared with the file whenever they are used."""

    def __init__(self, layers: list[StoredLayer], slots: int, threads: int = 2) -> None:
        self.store = ExpertStore(layers, slots, threads)
        self.parts = (*vars(self.store.gate_up).values(), *vars(self.store.down).values())

    def close(self) -> None:
        self.store.close()

    def visit(self, layer: int, experts: Collection[int]) -> list[int]:
        """The experts in the order of their use, each used once."""
        order: list[int] = []

        def use(ready: dict[int, int]) -> None:
            for expert, slot in ready.items():
                stored = self.store.layers[layer]
                for stack, part in zip(stored.stacks, self.parts, strict=True):
                    span = stack.expert(expert)
                    data = span.file.read_bytes()[span.offset : span.offset + span.nbytes]
                    assert bytes(part[slot].flatten().tolist()) == data
                assert self.store.biases is not None
                assert stored.biases is not None
                for bias, own in zip(self.store.biases, stored.biases, strict=True):
                    assert torch.equal(bias[slot], own[expert])
            order.extend(ready)

        self.store.visit(layer, experts, use)
        assert sorted(order) == sorted(experts)
        return order

    def hits(self, layer: int, experts: Collection[int]) -> int:
        before = self.store.reads
        self.visit(layer, experts)
        return (self.store.reads - before).hits


SETS = st.sets(st.integers(0, EXPERTS - 1), min_size=1)


@settings(max_examples=40)
@given(
    slots=st.integers(1, 20),
    threads=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(0, LAYERS - 1), SETS, SETS), min_size=1, max_size=12),
)
def test_slots_hold_what_the_file_holds(layers, slots, threads, steps):
    with closing(Opened(layers, slots, threads)) as opened:
        for layer, experts, prefetch in steps:
            opened.store.prefetch((layer + 1) % LAYERS, prefetch)
            opened.visit(layer, experts)
        reads = opened.store.reads
        assert reads.needed == sum(len(experts) for _, experts, _ in steps)
        assert reads.prefetched >= reads.prefetch_hits


def test_the_one_used_longest_ago_leaves_first(layers):
    with closing(Opened(layers, 3)) as opened:
        for expert in (0, 1, 2, 0):
            opened.visit(0, [expert])
        opened.visit(1, [4])  # takes the slot of expert 1
        assert [opened.hits(0, [expert]) for expert in (2, 0)] == [1, 1]
        assert opened.hits(1, [4]) == 1
        assert opened.hits(0, [1]) == 0  # takes the slot of expert 2
        assert opened.hits(0, [2]) == 0


def test_those_in_memory_are_used_first(layers):
    with closing(Opened(layers, 6)) as opened:
        opened.visit(0, [5, 3])
        assert set(opened.visit(0, [0, 1, 3, 5])[:2]) == {3, 5}


def test_prefetches_never_evict_experts_in_use(layers):
    with closing(Opened(layers, 4)) as opened:
        opened.visit(0, [0, 1, 2, 3])
        opened.store.prefetch(1, [0, 1, 2, 3])
        assert opened.hits(0, [0, 1, 2, 3]) == 4


def test_a_prefetch_is_a_hit_when_needed_and_cancelled_otherwise(layers):
    with closing(Opened(layers, 8)) as opened:
        opened.store.prefetch(1, [2])
        opened.visit(0, [0])
        jobs = [held.job for held in opened.store._coming]
        opened.store._reader.wait(lambda: all(job is None or job.settled for job in jobs))
        assert opened.hits(1, [2]) == 1
        assert opened.store.reads.prefetch_hits == opened.store.reads.prefetched == 1
        opened.store.prefetch(2, [0, 1])
        opened.visit(0, [0])
        opened.visit(2, [4, 5])
        assert opened.store.reads.prefetched == 3
        assert opened.store.reads.prefetch_hits == 1


def test_passes_over_more_than_fits_still_find_some(layers, monkeypatch):
    monkeypatch.setattr(stores, "AHEAD", 2)
    slots, everything = 10, range(EXPERTS)
    with closing(Opened(layers, slots)) as opened:
        found = [sum(opened.hits(layer, everything) for layer in range(LAYERS)) for _ in range(4)]
    # Dropping the one used longest ago would find none, each time.
    assert found[0] == 0
    assert min(found[1:]) >= slots - 2 * 2


def test_a_read_that_fails_is_one_line_and_the_next_may_succeed(layers, tmp_path):
    stack = layers[0].stacks[0]
    short = tmp_path / "short"
    whole = stack.file.read_bytes()
    short.write_bytes(whole[: stack.offset + 3])
    moved = [StoredStack(short, s.offset, s.shape, s.is_scale) for s in layers[0].stacks]
    with closing(Opened([StoredLayer(moved, layers[0].biases)], 2)) as opened:
        with pytest.raises(OssiaError, match=r"expert 0 of layer 0 ends at byte .*; copy the file"):
            opened.visit(0, [0])
        short.write_bytes(whole)
        opened.visit(0, [0, 1, 2, 3])


@settings(max_examples=30)
@given(
    offset=st.integers(0, 3 * ALIGNMENT),
    size=st.sampled_from([1, 511, ALIGNMENT, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 777]),
    direct=st.booleans(),
)
def test_a_span_of_any_place_and_size(tmp_path_factory, offset, size, direct):
    data = os.urandom(offset + size)
    file = tmp_path_factory.mktemp("spans") / "file"
    file.write_bytes(data)
    target = torch.zeros(size + 2, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.delattr(os, "O_DIRECT", raising=False)
        reader = Reader(3)
        with closing(reader):
            reader.open([file])
            job = Job("a span", [(Span(file, offset, size), target.data_ptr() + 1)])
            reader.submit(job, urgent=False)
            reader.wait(lambda: job.settled)
    assert job.done
    assert reader.bytes_read == size
    assert bytes(target.tolist()) == b"\0" + data[offset:] + b"\0"


def test_urgent_jobs_are_read_before_prefetches(tmp_path, monkeypatch):
    """By a thread that reads a piece for each permit, and after the end none."""
    read, permits = Reader._read, threading.Semaphore(0)

    def permitted(self: Reader, *given: Any) -> None:
        while not permits.acquire(timeout=0.01):
            if self._stopped:
                return
        read(self, *given)

    monkeypatch.setattr(Reader, "_read", permitted)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(6 * PIECE))
    target = torch.empty(6 * PIECE, dtype=torch.uint8)
    reader = Reader(1)
    with closing(reader):
        reader.open([file])
        prefetch = Job("a prefetch", [(Span(file, 0, 6 * PIECE), target.data_ptr())])
        other = Job("another", [(Span(file, 0, 6 * PIECE), target.data_ptr())])
        urgent = Job("what is needed", [(Span(file, 0, PIECE), target.data_ptr())])
        for job in (prefetch, other, urgent):
            reader.submit(job, urgent=job is urgent)
        permits.release(2)  # a piece of the first may be in flight when the urgent one comes
        reader.wait(lambda: urgent.settled)
        assert urgent.done
        assert not prefetch.settled
        reader.cancel(prefetch)
        reader.hurry(other)
        permits.release()
        reader.wait(lambda: prefetch.settled)
        assert not prefetch.done
    assert not other.done  # closing does not wait for it


def test_a_file_that_is_not_there_is_named(tmp_path):
    reader = Reader(1)
    with closing(reader), pytest.raises(OssiaError, match=r"cannot read .*gone: No such file"):
        reader.open([tmp_path / "gone"])
