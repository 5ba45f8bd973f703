"""Attention over pages and whole rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import REFERENCE, AttentionSpec, RopeTable
from ossia.ops.paged import FP8, LayerKind, quantize, to_fp8
from ossia.ops.triton import TRITON
from tests.ops.flat import reference
from tests.ops.triton.common import (
    DTYPES,
    FEW,
    RESULT_ERROR,
    normal,
    relative_error,
    same_kinds,
    triton,
)
from tests.ops.triton.pages import Pages, as_bytes


@FEW
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=3),
    counts=st.lists(st.sampled_from([0, 1, 2, 7, 100]), min_size=3, max_size=3)
    | st.just([1, 1, 1]),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 8, 13]),
    head_dim=st.sampled_from([2, 10, 16, 64, 72]),
    page_size=st.sampled_from([1, 5, 16]),
    window=st.none() | st.integers(1, 80),
    sinks=st.booleans(),
    rotated=st.booleans(),
    stored=st.sampled_from([None, torch.int8, FP8]),
    known=st.booleans(),
    apart=st.booleans(),
    dtype=DTYPES,
)
def test_paged_attention(
    device,
    lengths,
    counts,
    kv_heads,
    group,
    head_dim,
    page_size,
    window,
    sinks,
    rotated,
    stored,
    known,
    apart,
    dtype,
):
    counts = [min(count, length) for count, length in zip(counts, lengths, strict=False)]
    kind = LayerKind(window, kv_heads, head_dim)
    pages = Pages(kind, lengths, stored or dtype, device, page_size=page_size)
    q, k, v = pages.inputs(sum(counts), group, dtype)
    sink = normal(kv_heads * group, seed=3, dtype=dtype, device=device) if sinks else None
    angles = normal(len(q), head_dim // 2, seed=4, device=device)
    rotation = (angles.cos(), angles.sin()) if rotated else None
    found = triton.paged_attention(
        q, k, v, pages.step(counts, known=known, apart=apart), sinks=sink, rotation=rotation
    )
    written = pages.stored
    assert found.shape == q.shape
    assert found.dtype is dtype
    if not len(q):
        return
    expected = reference.paged_attention(q, k, v, pages.step(counts), sinks=sink, rotation=rotation)
    # The reference rounds rotated queries and unpacked keys to the type, the kernel its weights.
    assert relative_error(found, expected) <= 4 * RESULT_ERROR[dtype]
    for ours, theirs in zip(written, pages.stored, strict=True):
        if stored is FP8:  # rotated keys may be rounded to the next one
            assert (ours.int() - theirs.int()).abs().amax() <= 1
            assert (ours != theirs).double().mean() < 0.02
        else:
            assert relative_error(ours, theirs) <= 2 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_long_text_is_cut_into_parts_and_joined(device, window, sinks):
    pages = Pages(LayerKind(window, 1, 16), [700], torch.float32, device)
    q, k, v = pages.inputs(1, 3, torch.float32)
    sink = normal(3, seed=3, device=device) + 4 if sinks else None
    for apart in (False, True):  # the counters are at zero again
        found = triton.paged_attention(q, k, v, pages.step([1], apart=apart), sinks=sink)
        expected = reference.paged_attention(q, k, v, pages.step([1]), sinks=sink)
        assert relative_error(found, expected) <= 1e-6


@pytest.mark.parametrize("window", [None, 20])
def test_what_no_query_sees_may_be_anything(device, window):
    """NaN before the window and behind the end, and page tables that are out of date."""
    size, length = 16, 70
    found = []
    for filling in (0.0, torch.nan):
        kind = LayerKind(window, 2, 8)
        pages = Pages(kind, [length, 3], torch.float32, device, page_size=size)
        oldest = 0 if window is None else length - 2 - window + 1
        others = pages.step([2, 1]).tables.seen[1]
        slots = pages.step([2, 1]).tables.seen[0]
        slots = torch.cat([slots, others])
        for store in (pages.pool.keys[kind], pages.pool.values[kind]):
            kept = store.flatten(0, 2).index_select(0, slots).clone()
            store.fill_(filling)
            store.flatten(0, 2).index_copy_(0, slots, kept)
        pages.table[0, : oldest // size] = 2**30
        q, k, v = pages.inputs(3, 2, torch.float32)
        found.append(triton.paged_attention(q, k, v, pages.step([2, 1])))
        assert found[-1].isfinite().all()
    assert torch.equal(*found)


@FEW
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    group=st.sampled_from([1, 3, 8]),
    head_dim=st.sampled_from([2, 16, 72]),
    window=st.none() | st.integers(1, 150),
    sinks=st.booleans(),
    rotated=st.booleans(),
    stored=st.sampled_from([None, torch.int8, FP8]),
    dtype=DTYPES,
)
def test_a_step_that_appends_as_it_attends(
    device, lengths, group, head_dim, window, sinks, rotated, stored, dtype
):
    """Of texts that do not see each other: as where keys and values are written first."""
    kind, counts = LayerKind(window, 2, head_dim), [1] * len(lengths)
    found, written = [], []
    for apart in (True, False):
        pages = Pages(kind, lengths, stored or dtype, device, page_size=5)
        q, k, v = pages.inputs(len(counts), group, dtype)
        sink = normal(2 * group, seed=3, dtype=dtype, device=device) if sinks else None
        angles = normal(len(q), head_dim // 2, seed=4, device=device)
        rotation = (angles.cos(), angles.sin()) if rotated else None
        step = pages.step(counts, apart=apart)
        found.append(triton.paged_attention(q, k, v, step, sinks=sink, rotation=rotation))
        written.append(pages.stored)
    assert relative_error(found[0], found[1]) <= 2 * RESULT_ERROR[dtype]
    assert all(torch.equal(*pair) for pair in zip(*written, strict=True))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("counts", [[1], [5]])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("tensor", [0, 1, 2])
def test_numbers_at_the_edge(device, number, counts, apart, tensor):
    """In the last query, and in the keys and values of a token that only it sees."""
    pages = Pages(LayerKind(None, 1, 16), [90], torch.float32, device)
    inputs = pages.inputs(counts[0], 2, torch.float32)
    inputs[tensor][-1, :, 3] = number
    sinks = normal(2, seed=3, device=device)
    found = triton.paged_attention(*inputs, pages.step(counts, apart=apart), sinks=sinks)
    expected = reference.paged_attention(*inputs, pages.step(counts), sinks=sinks)
    assert same_kinds(found[-1], expected[-1])


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 0.0, 0.25, 1e-42])
@pytest.mark.parametrize("tokens", [1, 2])
def test_int8_pages_hold_the_codes_of_the_reference(device, number, tokens):
    """To the bit; NaN and infinity become NaN."""
    pages = Pages(LayerKind(None, 2, 10), [9], torch.int8, device)
    q, k, v = pages.inputs(tokens, 1, torch.float32)
    k[0, 1, 4] = number
    v[-1, 0] = number
    triton.paged_attention(q, k, v, pages.step([tokens], apart=True))
    keys, values, *scales = pages.stored
    slots = pages.step([tokens]).tables.written
    for stored, of, x in ((keys, scales[0], k), (values, scales[1], v)):
        codes, expected = quantize(x)
        assert torch.equal(stored.flatten(0, 2)[slots], codes)
        assert torch.equal(of.flatten(0, 2)[slots].nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("size", [1.0, 2.0**-7, 2.0**-9, 1e-3, 300.0])
def test_fp8_pages_hold_the_codes_of_the_reference(device, size, tokens):
    """To the bit, with ties, subnormal numbers and those beyond the largest; infinity is NaN."""
    pages = Pages(LayerKind(None, 2, 10), [9], FP8, device)
    q, k, v = pages.inputs(tokens, 1, torch.float32)
    k, v = k * size, (v * 8).round() / 8 * size
    k[-1, 1, :6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 464.0, -1e9])
    triton.paged_attention(q, k, v, pages.step([tokens], apart=True))
    slots = pages.step([tokens]).tables.written
    for stored, x in zip(pages.stored, (k, v), strict=True):
        assert torch.equal(stored.flatten(0, 2)[slots], as_bytes(to_fp8(x)))


def test_every_number_of_fp8_is_read_as_it_is(device):
    """By attention to one key, whose value is then the result."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).view(2, 1, 2, 64)
    for dtype in RESULT_ERROR:
        pages = Pages(LayerKind(1, 2, 64), [1, 1], FP8, device, page_size=1)
        q, k, _ = pages.inputs(2, 1, dtype)
        expected = codes[:, 0].view(FP8).to(dtype)
        found = triton.paged_attention(q, k, expected, pages.step([1, 1]))
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


def test_tokens_of_one_text_on_their_own_see_each_other(device):
    """As when drafted tokens are verified: rows that share pages, and grow by one."""
    kind = LayerKind(None, 2, 16)
    pages = Pages(kind, [40, 41, 42], torch.float32, device)
    pages.table[1:] = pages.table[0]
    q, k, v = pages.inputs(3, 2, torch.float32)
    found = triton.paged_attention(q, k, v, pages.step([1, 1, 1]))
    pages.lengths = [42]
    expected = reference.paged_attention(q, k, v, pages.step([3]))
    assert relative_error(found, expected) <= 1e-6


def test_a_prompt_read_in_chunks_gets_what_it_gets_whole(device):
    pages = Pages(LayerKind(33, 2, 16), [150], torch.float32, device)
    q, k, v = pages.inputs(150, 2, torch.float32)
    sinks = normal(4, seed=3, device=device)
    whole = triton.paged_attention(q, k, v, pages.step([150]), sinks=sinks)
    parts, start = [], 0
    for end in (1, 2, 34, 99, 150):
        pages.lengths = [end]
        chunk, step = slice(start, end), pages.step([end - start])
        parts.append(triton.paged_attention(q[chunk], k[chunk], v[chunk], step, sinks=sinks))
        start = end
    assert relative_error(torch.cat(parts), whole) <= 1e-6


@FEW
@given(
    batch=st.integers(1, 2),
    length=st.integers(0, 70),
    group=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([6, 16]),
    window=st.none() | st.integers(1, 70),
    sinks=st.booleans(),
    dtype=DTYPES,
)
def test_whole_rows(device, batch, length, group, head_dim, window, sinks, dtype):
    shapes = ((batch, length, heads, head_dim) for heads in (2 * group, 2, 2))
    q, k, v = (
        normal(*shape, seed=seed, dtype=dtype, device=device) for seed, shape in enumerate(shapes)
    )
    sink = normal(2 * group, seed=3, dtype=dtype, device=device) if sinks else None
    found = triton.attention(q, k, v, window=window, sinks=sink)
    expected = reference.attention(q, k, v, window=window, sinks=sink)
    assert found.shape == q.shape
    assert found.dtype is dtype
    assert relative_error(found, expected) <= 4 * RESULT_ERROR[dtype]


@pytest.mark.parametrize("each", [False, True])
def test_whole_rows_are_rotated(device, each):
    """By the angles of all rows, or of each."""
    q, k, v = (normal(2, 9, 2, 8, seed=seed, device=device) for seed in range(3))
    angles = normal(*((2, 9, 4) if each else (9, 4)), seed=4, device=device)
    rope = RopeTable(angles.cos(), angles.sin())
    found = TRITON.attention(q, k, v, AttentionSpec(), rope=rope)
    assert relative_error(found, REFERENCE.attention(q, k, v, AttentionSpec(), rope=rope)) <= 1e-6


def test_documents_and_foreign_types_are_left_to_the_reference(device):
    q, k, v = (normal(1, 9, 2, 8, seed=seed, device=device) for seed in range(3))
    documents = torch.tensor([[0] * 4 + [1] * 5], device=device)
    found = triton.attention(q, k, v, documents=documents)
    assert torch.equal(found, reference.attention(q, k, v, documents=documents))
    wide = [x.double() for x in (q, k, v)]
    assert torch.equal(triton.attention(*wide), reference.attention(*wide))
