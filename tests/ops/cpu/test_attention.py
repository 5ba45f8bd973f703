"""Attention over pages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops.paged import LayerKind, LayerKV, PagedKV, PagePool
from tests.ops.cpu.common import DTYPES, FEW, RESULT_ERROR, native, normal, relative_error
from tests.ops.flat import reference


class Pages:
    """A pool of one layer, its pages in disorder and full of numbers; sequences of `lengths`."""

    def __init__(self, kind: LayerKind, lengths: list[int], page_size: int, dtype: torch.dtype):
        self.kind, self.lengths = kind, lengths
        columns = -(-max(lengths) // page_size)
        order = torch.randperm(len(lengths) * columns, generator=torch.Generator().manual_seed(6))
        self.table = order.view(len(lengths), columns).int()
        self.pool = PagePool([kind], {kind: len(order)}, page_size=page_size, dtype=dtype)
        for seed, pages in enumerate((self.pool.keys[kind], self.pool.values[kind])):
            pages.copy_(normal(*pages.shape, seed=7 + seed) * (50 if dtype is torch.int8 else 1))
        for scales in (self.pool.key_scales, self.pool.value_scales):
            if scales:
                scales[kind].copy_(normal(*scales[kind].shape, seed=9).abs() / 50)

    def step(self, counts: list[int], lengths: list[int] | None = None) -> LayerKV:
        lengths = lengths or self.lengths
        kv = PagedKV(
            self.pool, {self.kind: self.table}, torch.tensor(lengths), torch.tensor(counts)
        )
        return kv.layer(0)

    @property
    def stored(self) -> list[torch.Tensor]:
        pool = self.pool
        kinds = (pool.keys, pool.values, pool.key_scales, pool.value_scales)
        return [pages[self.kind].clone() for pages in kinds if pages]


def inputs(
    tokens: int, kind: LayerKind, group: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries = (tokens, kind.num_kv_heads * group, kind.head_dim)
    keys = (tokens, kind.num_kv_heads, kind.head_dim)
    return (
        normal(*queries, dtype=dtype),
        normal(*keys, seed=1, dtype=dtype),
        normal(*keys, seed=2, dtype=dtype),
    )


@FEW
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    counts=st.lists(st.sampled_from([0, 1, 2, 7, 200]), min_size=3, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 8, 13]),
    head_dim=st.sampled_from([2, 5, 16, 20, 64, 72]),
    page_size=st.sampled_from([1, 5, 16]),
    window=st.none() | st.integers(1, 130),
    sinks=st.booleans(),
    rotated=st.booleans(),
    quantized=st.booleans(),
    dtype=DTYPES,
)
def test_paged_attention(
    form,
    lengths,
    counts,
    kv_heads,
    group,
    head_dim,
    page_size,
    window,
    sinks,
    rotated,
    quantized,
    dtype,
):
    counts = [min(count, length) for count, length in zip(counts, lengths, strict=False)]
    kind = LayerKind(window, kv_heads, head_dim)
    pages = Pages(kind, lengths, page_size, torch.int8 if quantized else dtype)
    tokens = sum(counts)
    q, k, v = inputs(tokens, kind, group, dtype)
    sink = normal(kv_heads * group, seed=3, dtype=dtype) if sinks else None
    angles = normal(tokens, head_dim // 2, seed=4)
    rotation = (angles.cos(), angles.sin()) if rotated and head_dim % 2 == 0 else None
    kv = pages.step(counts)
    found = form(native.paged_attention, q, k, v, kv, sinks=sink, rotation=rotation)
    stored = pages.stored
    assert found.shape == q.shape
    assert found.dtype is dtype
    if not tokens:
        return
    wide = q.double(), k.double(), v.double()
    expected = reference.paged_attention(*wide, kv, sinks=sink, rotation=rotation)
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype]
    for ours, theirs in zip(stored, pages.stored, strict=True):  # the same bits
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_read_in_chunks_gets_the_bits_it_gets_whole(form, window, group, dtype):
    kind = LayerKind(window, 2, 64)
    pages = Pages(kind, [500], 16, dtype)
    q, k, v = inputs(500, kind, group, dtype)
    sinks = normal(2 * group, seed=3)
    whole = form(native.paged_attention, q, k, v, pages.step([500]), sinks=sinks)
    expected = reference.paged_attention(
        q.double(), k.double(), v.double(), pages.step([500]), sinks=sinks
    )
    tolerance = RESULT_ERROR[dtype]
    assert relative_error(whole, expected) <= tolerance
    parts, start = [], 0
    for end in (1, 64, 65, 193, 320, 500):
        chunk = slice(start, end)
        kv = pages.step([end - start], [end])
        parts.append(form(native.paged_attention, q[chunk], k[chunk], v[chunk], kv, sinks=sinks))
        start = end
    # Single queries are summed in another order.
    together = torch.cat(parts)
    assert relative_error(together, whole) <= tolerance
    several = [i for i in range(500) if i not in (0, 64)]
    assert torch.equal(together[several], whole[several])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [0.1, 1, 4])
@pytest.mark.parametrize(("window", "head_dim"), [(None, 128), (100, 64), (7, 20)])
def test_integers_err_by_a_tenth_of_bfloat16(form, window, head_dim, size, stored):
    """AVX-512 multiplies several queries in bfloat16 as integers."""
    kind = LayerKind(window, 2, head_dim)
    pages = Pages(kind, [333], 16, stored)
    q, k, v = inputs(90, kind, 3, torch.bfloat16)
    q = q * size
    found = form(native.paged_attention, q, k, v, pages.step([90]))
    exact = reference.paged_attention(q.double(), k.double(), v.double(), pages.step([90]))
    rounded = relative_error(exact.bfloat16(), exact)
    assert relative_error(found, exact) ** 2 <= rounded**2 + 3e-4**2


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [1, 2**-6, 2**-13])
@pytest.mark.parametrize("factor", [0, 2**-20, 2**-6, 2**6, 2**12])
def test_one_value_of_another_size_takes_no_precision_from_the_rest(form, stored, size, factor):
    """The rest are weighed by integers that the largest contribution of a block scales."""
    kind = LayerKind(None, 1, 64)
    pages = Pages(kind, [128], 16, stored)
    q, k, v = inputs(64, kind, 2, torch.bfloat16)
    v *= size
    scaled = pages.pool.value_scales if stored is torch.int8 else pages.pool.values
    scaled[kind] *= size
    pages.pool.values[kind][0, pages.table[0, 2], 5] *= bool(factor)  # the position 37
    scaled[kind][0, pages.table[0, 2], 5] *= factor or 1
    found = form(native.paged_attention, q, k, v, pages.step([64]))
    exact = reference.paged_attention(q.double(), k.double(), v.double(), pages.step([64]))
    rounded = relative_error(exact.bfloat16(), exact)
    assert relative_error(found, exact) ** 2 <= rounded**2 + 3e-4**2


@pytest.mark.parametrize("power", [-120, -100, -38, 38, 60])
@pytest.mark.parametrize("which", ["keys", "values", "a key", "a value", "no values", "queries"])
def test_numbers_of_any_size_are_weighed(form, which, power):
    kind = LayerKind(None, 1, 16)
    pages = Pages(kind, [120], 16, torch.bfloat16)
    q, k, v = inputs(40, kind, 2, torch.bfloat16)
    stored = (pages.pool.values if "value" in which else pages.pool.keys)[kind]
    sequence = pages.table[0].long()  # the pool has one layer
    if which == "queries":
        q[::3] *= 2.0**power
    elif which == "no values":
        stored[0, sequence[:4]] = 0
    elif which.startswith("a "):
        stored[0, sequence[2], 5] *= 2.0**power
    else:
        stored[0, sequence[:4]] *= 2.0**power
    found = form(native.paged_attention, q, k, v, pages.step([40]))
    expected = reference.paged_attention(q.double(), k.double(), v.double(), pages.step([40]))
    for ours, theirs in zip(found, expected, strict=True):  # token by token
        assert relative_error(ours, theirs) <= 2 * RESULT_ERROR[torch.bfloat16]


@pytest.mark.parametrize("length", [1024, 1025, 3000])
@pytest.mark.parametrize("window", [None, 1500])
def test_a_long_text_is_cut_into_parts_and_joined(form, length, window):
    kind = LayerKind(window, 2, 16)
    pages = Pages(kind, [length, 7], 16, torch.float32)
    q, k, v = inputs(2, kind, 3, torch.float32)
    sinks = normal(6, seed=3)
    found = form(native.paged_attention, q, k, v, pages.step([1, 1]), sinks=sinks)
    wide = q.double(), k.double(), v.double()
    expected = reference.paged_attention(*wide, pages.step([1, 1]), sinks=sinks)
    assert relative_error(found, expected) <= 1e-6


def test_scores_of_any_size_are_weighed(form):
    """Beyond what a power of two can hold, above and below, and none but the sink's."""
    kind = LayerKind(None, 1, 16)
    for size in (1e-3, 1.0, 60.0):
        pages = Pages(kind, [90], 16, torch.float32)
        q, k, v = inputs(80, kind, 2, torch.float32)
        q, sinks = q * size, torch.tensor([-100.0, 100.0])
        found = form(native.paged_attention, q, k, v, pages.step([80]), sinks=sinks)
        wide = q.double(), k.double(), v.double()
        expected = reference.paged_attention(*wide, pages.step([80]), sinks=sinks)
        # A score has the error of float32, which the softmax makes relative.
        assert relative_error(found, expected) <= 1e-6 * max(1, size)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.int8, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.int8, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_those_that_see_it(form, stored, dtype, which, bad):
    kind = LayerKind(20, 1, 16)
    pages = Pages(kind, [100, 30], 16, stored)
    arguments = inputs(90, kind, 2, dtype)  # of the second sequence the first query at 0
    counts = [60, 30]
    healthy = form(native.paged_attention, *arguments, pages.step(counts))
    arguments[which][30, 0, 3] = bad  # at position 70
    found = form(native.paged_attention, *arguments, pages.step(counts))
    expected = reference.paged_attention(*arguments, pages.step(counts))
    assert torch.equal(found[60:], healthy[60:])
    assert (found.isnan() <= expected.isnan()).all()
    if which == 2:  # one dimension of the value
        seeing = found[30:50] if stored is torch.int8 else found[30:50, :, 3]
        assert not seeing.isfinite().any()
    elif which == 0:
        assert found[30, 0].isnan().all()
        assert torch.equal(found[31:], healthy[31:])
    elif bad != bad:
        assert found[30:50].isnan().all()
    assert torch.equal(found[:30], healthy[:30])
    assert torch.equal(found[50:60], healthy[50:60])


def test_hostile_pages_are_refused_not_read(form):
    kind = LayerKind(None, 1, 4)
    pages = Pages(kind, [4], 2, torch.float32)
    for count in (1, 3):
        token = normal(count, 1, 4)
        for table, length in (([0, -1], 3), ([0, 2], 3), ([-(1 << 31), 0], 3), ([0, 1], 5)):
            pages.table = torch.tensor([table], dtype=torch.int32)
            with pytest.raises(IndexError, match="page"):
                form(native.paged_attention, token, token, token, pages.step([count], [length]))
    pages.table = torch.tensor([[0, 1]], dtype=torch.int32)
    token = normal(2, 1, 4)
    for count, length in ((1, 4), (3, 4), (1 << 62, 1 << 62), (-1, 4), (2, 1), (2, -1)):
        with pytest.raises(IndexError, match=r"page|token"):
            form(native.paged_attention, token, token, token, pages.step([count], [length]))


def test_pages_that_no_query_sees_need_not_be_there(form):
    kind = LayerKind(4, 1, 4)
    pages = Pages(kind, [40], 2, torch.float32)
    token = inputs(3, kind, 1, torch.float32)
    expected = form(native.paged_attention, *token, pages.step([3]))
    pages.table[:, : (40 - 3 - 3) // 2] = -1
    assert torch.equal(form(native.paged_attention, *token, pages.step([3])), expected)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_scores():
    """8,192 queries times as many keys would be 268 MB of scores."""
    code = """
import torch
from ossia.ops import AttentionSpec
from ossia.ops.cpu import CPU
from ossia.ops.paged import LayerKind, PagedKV, PagePool

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

length, kind = 8192, LayerKind(None, 1, 16)
pool = PagePool([kind], {kind: length // 16}, dtype=torch.float32)
pool.keys[kind].zero_(), pool.values[kind].zero_()
table = torch.arange(length // 16, dtype=torch.int32)[None]
x = torch.ones(length, 1, 16)
CPU.attention(x[:99], x[:99], x[:99], AttentionSpec(), PagedKV(
    pool, {kind: table}, torch.tensor([99]), torch.tensor([99])).layer(0))
before = peak()
CPU.attention(x, x, x, AttentionSpec(), PagedKV(
    pool, {kind: table}, torch.tensor([length]), torch.tensor([length])).layer(0))
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 * 1024  # KiB
