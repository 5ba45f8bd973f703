"""Attention over pages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.ops import reference
from ossia.ops.paged import LayerKind, PagedKV, PagePool
from tests.ops.cpu.common import DTYPES, FEW, RESULT_ERROR, cpu, normal, relative_error


@FEW
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    counts=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 16, 20, 64]),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.none() | st.integers(1, 30),
    sinks=st.booleans(),
    dtype=DTYPES,
)
def test_paged_attention(
    form, lengths, counts, kv_heads, group, head_dim, page_size, window, sinks, dtype
):
    counts = [min(count, length) for count, length in zip(counts, lengths, strict=False)]
    counts[0] = max(counts[0], 1)
    kind = LayerKind(window, kv_heads, head_dim)
    columns = -(-max(lengths) // page_size)
    order = torch.randperm(len(lengths) * columns, generator=torch.Generator().manual_seed(6))
    table = order.view(len(lengths), columns).int()
    pool = PagePool([kind], {kind: len(order)}, page_size=page_size, dtype=dtype)
    pool.keys[kind].copy_(normal(*pool.keys[kind].shape, seed=7, dtype=dtype))
    pool.values[kind].copy_(normal(*pool.values[kind].shape, seed=8, dtype=dtype))
    kv = PagedKV(pool, {kind: table}, torch.tensor(lengths), torch.tensor(counts)).layer(0)
    tokens = sum(counts)
    q = normal(tokens, kv_heads * group, head_dim, dtype=dtype)
    k, v = (normal(tokens, kv_heads, head_dim, seed=s, dtype=dtype) for s in (1, 2))
    sink = normal(kv_heads * group, seed=3, dtype=dtype) if sinks else None
    found = form(cpu.paged_attention, q, k, v, kv, sinks=sink)
    expected = reference.paged_attention(q.float(), k.float(), v.float(), kv, sinks=sink)
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype] + 1e-6


def test_hostile_pages_are_refused_not_read(form):
    kind = LayerKind(None, 1, 4)
    pool = PagePool([kind], {kind: 2}, page_size=2, dtype=torch.float32)
    token = normal(1, 1, 4)
    for pages, length in (([0, -1], 3), ([0, 2], 3), ([0, 1], 5)):
        table = torch.tensor([pages], dtype=torch.int32)
        kv = PagedKV(pool, {kind: table}, torch.tensor([length]), torch.tensor([1])).layer(0)
        with pytest.raises(IndexError, match="page"):
            form(cpu.paged_attention, token, token, token, kv)
