"""Page plans: as much as all sequences could need, within half of the memory."""

import pytest
import torch

from ossia.engine import pages as pages_module
from ossia.engine.pages import PageAllocator, pages_for, plan_pages
from ossia.ops.paged import LayerKind

FULL = LayerKind(None, 8, 64)
SLIDING = LayerKind(128, 8, 64)


def plan(layers, max_tokens, **changes):
    sizes = {"page_size": 16, "chunk": 512, "max_sequences": 4, "dtype": torch.bfloat16} | changes
    return plan_pages(layers, 4096, max_tokens=max_tokens, device=torch.device("cpu"), **sizes)


def test_by_default_all_sequences_may_fill_their_contexts():
    assert plan([SLIDING, FULL] * 12, None) == {SLIDING: 4 * 41, FULL: 4 * 256}


def test_by_default_half_of_the_memory_is_the_most(monkeypatch):
    page_bytes = 12 * 2 * 16 * 8 * 64 * 2  # layers, keys and values, positions, heads, dim, bytes
    for pages, expected in [
        (500, {SLIDING: 164, FULL: 336}),
        (200, {SLIDING: 100, FULL: 100}),
        (1, {SLIDING: 1, FULL: 1}),
    ]:
        memory = 2 * pages * page_bytes
        monkeypatch.setattr(pages_module, "_memory", lambda device, memory=memory: memory)
        assert plan([SLIDING, FULL] * 12, None) == expected


def test_int8_makes_room_for_nearly_twice_the_positions(monkeypatch):
    position = 12 * 2 * 8 * (64 + 4)  # layers, keys and values, heads, dim and scale
    monkeypatch.setattr(pages_module, "_memory", lambda device: 2 * 100 * 16 * position)
    assert plan([FULL] * 12, None, dtype=torch.int8) == {FULL: 100}
    assert plan([FULL] * 12, None) == {FULL: 53}


def test_what_is_asked_for_is_rounded_up_to_pages():
    assert plan([FULL], 1000) == {FULL: 63}
    assert plan([SLIDING, FULL], 1000) == {SLIDING: 63, FULL: 63}


@pytest.mark.parametrize("page_size", [1, 3, 4])
@pytest.mark.parametrize("window", [1, 2, 7, 8])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_the_bound_of_a_window_holds_for_any_division_into_steps(page_size, window, chunk):
    kind = LayerKind(window, 1, 1)
    bound = pages_for(kind, 50, page_size, chunk)
    assert bound <= -(-(window + chunk) // page_size) + 1
    for step in range(1, chunk + 1):
        allocator = PageAllocator(
            {kind: bound}, page_size=page_size, chunk=chunk, max_sequences=1, context_length=50
        )
        assert allocator.most_positions >= 50
        assert allocator.admit(3, 50)
        assert not allocator.admit(4, 1)
        for computed in range(0, 50, step):
            length = min(50, computed + step)
            allocator.extend(3, computed, length)
            row = allocator.tables([3], length)[kind][0].tolist()
            for position in range(max(0, computed - window + 1), length):
                assert row[position // page_size] >= 0
        allocator.release(3)
        assert sorted(allocator.kinds[kind].free) == list(range(bound))
