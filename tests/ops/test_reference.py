"""The reference operations are the papers' formulas, computed here anew in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.ops import attention
from ossia.ops.mxfp4 import quantize, unpack
from ossia.ops.paged import FP8, LayerKind, PagedKV, PagePool, to_fp8
from ossia.ops.paged import quantize as quantize_kv
from tests.ops.flat import reference

# What e4m3 holds, without its sign: multiples of 2**-9 up to 2**-6, and eighths of powers of two.
E4M3 = torch.tensor(
    [code / 8 * 2.0**-6 for code in range(8)]
    + [(1 + part / 8) * 2.0**power for power in range(-6, 9) for part in range(8)],
    dtype=torch.float64,
)[:-1]


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_attention(q, k, v, window, sinks):
    """One query and one head at a time, in float64; q (queries, heads, dim), the last positions of
    the keys.
    """
    queries, heads, dim = q.shape
    keys, kv_heads, _ = k.shape
    out = torch.zeros(queries, heads, dim, dtype=torch.float64)
    for i in range(queries):
        position = keys - queries + i
        for head in range(heads):
            group = head // (heads // kv_heads)
            seen = [
                j
                for j in range(keys)
                if j <= position and (window is None or position - j < window)
            ]
            scores = [
                float(q[i, head].double() @ k[j, group].double()) / math.sqrt(dim) for j in seen
            ]
            total = sum(math.exp(s) for s in scores)
            if sinks is not None:
                total += math.exp(float(sinks[head]))
            for s, j in zip(scores, seen, strict=True):
                out[i, head] += math.exp(s) / total * v[j, group].double()
    return out


@settings(max_examples=40)
@given(
    queries=st.integers(1, 9),
    history=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 12),
    with_sinks=st.booleans(),
    budget=st.sampled_from([1, 40, 1 << 24]),
)
def test_attention(queries, history, kv_heads, group, window, with_sinks, budget):
    heads, dim = kv_heads * group, 6
    q = normal(queries, heads, dim, seed=1)
    k, v = (
        normal(queries + history, kv_heads, dim, seed=2),
        normal(queries + history, kv_heads, dim, seed=3),
    )
    sinks = normal(heads, seed=4) if with_sinks else None
    expected = naive_attention(q, k, v, window, sinks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES", budget)  # whole prompts and blocks of one query alike
        found = reference.attention(q[None], k[None], v[None], window=window, sinks=sinks)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


class Pages:
    """Sequences over a pool, their pages handed out in a shuffled order."""

    def __init__(
        self, lengths: list[int], kind: LayerKind, page_size: int, dtype=torch.float32
    ) -> None:
        columns = max(-(-length // page_size) for length in lengths)
        order = torch.randperm(len(lengths) * columns, generator=torch.Generator().manual_seed(5))
        self.table = order.view(len(lengths), columns).int()
        self.kind = kind
        self.pool = PagePool([kind, kind], {kind: len(order)}, page_size=page_size, dtype=dtype)

    def step(self, lengths: list[int], counts: list[int]) -> PagedKV:
        return PagedKV(
            self.pool, {self.kind: self.table}, torch.tensor(lengths), torch.tensor(counts)
        )


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 21), min_size=1, max_size=3),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.none() | st.integers(1, 9),
    chunk=st.integers(1, 22),
    with_sinks=st.booleans(),
)
def test_paged_attention_is_attention_whatever_the_pages_and_chunks(
    lengths, page_size, window, chunk, with_sinks
):
    kind = LayerKind(window, 2, 6)
    pages = Pages(lengths, kind, page_size)
    q = [normal(n, 4, 6, seed=10 + i) for i, n in enumerate(lengths)]
    k = [normal(n, 2, 6, seed=20 + i) for i, n in enumerate(lengths)]
    v = [normal(n, 2, 6, seed=30 + i) for i, n in enumerate(lengths)]
    sinks = normal(4, seed=4) if with_sinks else None
    found = [[] for _ in lengths]
    for start in range(0, max(lengths), chunk):
        ends = [min(start + chunk, n) for n in lengths]
        counts = [max(end - start, 0) for end in ends]
        queries, keys, values = (
            torch.cat([x[start : start + count] for x, count in zip(xs, counts, strict=True)])
            for xs in (q, k, v)
        )
        layer = pages.step(ends, counts).layer(1)
        out = reference.paged_attention(queries, keys, values, layer, sinks=sinks)
        for parts, part in zip(found, out.split(counts), strict=True):
            parts.append(part)
    for i, parts in enumerate(found):
        expected = naive_attention(q[i], k[i], v[i], window, sinks)
        torch.testing.assert_close(torch.cat(parts).double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(queries=st.integers(1, 5), history=st.integers(0, 9), with_sinks=st.booleans())
def test_attention_in_bfloat16_is_rounded_once_at_its_end(queries, history, with_sinks):
    shapes = [(2, queries, 4, 6), (2, queries + history, 2, 6), (2, queries + history, 2, 6)]
    narrow = [normal(*shape, seed=i).bfloat16() for i, shape in enumerate(shapes)]
    sinks = normal(4, seed=4).bfloat16() if with_sinks else None
    found = reference.attention(*narrow, window=7, sinks=sinks)
    wide = reference.attention(*(x.float() for x in narrow), window=7, sinks=sinks)
    assert torch.equal(found, wide.bfloat16())


def test_pages_that_fell_out_of_the_window_are_not_read():
    kind = LayerKind(4, 1, 2)
    pages = Pages([9], kind, page_size=2)
    layer = pages.step([8], [8]).layer(0)
    k, v = normal(9, 1, 2, seed=1), normal(9, 1, 2, seed=2)
    reference.paged_attention(normal(8, 1, 2), k[:8], v[:8], layer)
    pages.table[0, :2] = -1  # positions 0 to 3; the query at 8 sees 5 to 8
    q = normal(1, 1, 2, seed=3)
    found = reference.paged_attention(q, k[8:], v[8:], pages.step([9], [1]).layer(0))
    torch.testing.assert_close(found.double(), naive_attention(q, k, v, 4, None))


def test_a_missing_page_is_an_error_and_never_the_page_of_another():
    pages = Pages([9, 3], LayerKind(4, 1, 2), page_size=2)
    pages.table[0, 3] = -1  # positions 6 and 7, which the query at 8 sees
    q, k, v = normal(1, 1, 2), normal(1, 1, 2, seed=1), normal(1, 1, 2, seed=2)
    with pytest.raises(IndexError):
        reference.paged_attention(q, k, v, pages.step([9, 0], [1, 0]).layer(0))


def test_what_a_step_reads_and_writes_is_computed_once_for_all_layers_of_a_kind():
    kind = LayerKind(4, 1, 2)
    step = Pages([9, 3], kind, page_size=2).step([9, 3], [2, 0])
    tables = step.layer(0).tables
    assert step.layer(1).tables is tables
    assert [len(seen) for seen in tables.seen] == [5, 0]  # positions 4 to 8; no query, no key
    assert torch.equal(tables.written, tables.seen[0][-2:])
    assert tables.seen is tables.seen


@pytest.mark.parametrize("lengths", [[], [3, 8]])
def test_a_step_without_tokens_does_nothing(lengths):
    kind = LayerKind(None, 2, 6)
    pages = Pages([8, 8], kind, page_size=4)
    pages.table = pages.table[: len(lengths)]
    q, k, v = (normal(0, heads, 6) for heads in (4, 2, 2))
    layer = pages.step(lengths, [0] * len(lengths)).layer(0)
    assert reference.paged_attention(q, k, v, layer).shape == (0, 4, 6)


def test_the_two_layers_of_a_kind_have_storage_of_their_own():
    kind = LayerKind(None, 1, 2)
    pages = Pages([2], kind, page_size=2)
    q, k, v = normal(2, 1, 2), normal(2, 1, 2, seed=1), normal(2, 1, 2, seed=2)
    first, second = (pages.step([2], [2]).layer(i) for i in (0, 1))
    reference.paged_attention(q, k, v, first)
    second.keys.zero_()
    assert first.keys.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_rounds_where_each_family_does(dtype):
    x, weight = normal(5, 48, dtype=torch.float64).to(dtype), normal(48, seed=1).to(dtype)
    exact = x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-5)
    before = reference.rms_norm(x, weight, 1e-5, round_before_weight=True)
    after = reference.rms_norm(x, weight, 1e-5, round_before_weight=False)
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (0, 0)
    torch.testing.assert_close(before, exact.to(dtype) * weight, rtol=rtol, atol=atol)
    rounded_last = (exact * weight.double()).to(dtype)
    torch.testing.assert_close(after, rounded_last, rtol=rtol, atol=atol)


def test_rotate_turns_half_split_pairs():
    x, angle = normal(3, 2, 8), normal(3, 4, seed=1).double()
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.exp(1j * angle)[:, None]
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)
    found = reference.rotate(x, angle.cos().float(), angle.sin().float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def assert_near(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_activations():
    gate, up = normal(100) * 6, normal(100, seed=1) * 6
    g, u = gate.double(), up.double()
    cubic = math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)
    assert_near(reference.gelu(gate), g / 2 * (1 + torch.tanh(cubic)))
    assert_near(reference.swiglu(gate, up), g / (1 + torch.exp(-g)) * u)
    g, u = g.clamp(max=7), u.clamp(-7, 7)
    expected = g / (1 + torch.exp(-1.702 * g)) * (u + 1)
    assert_near(reference.clamped_swiglu(gate, up, limit=7.0, alpha=1.702), expected)


def choices(tokens: int, experts: int, chosen: int) -> torch.Tensor:
    """Different experts for each token, (tokens, chosen)."""
    return normal(tokens, experts, seed=7).argsort(-1)[:, :chosen]


@pytest.mark.parametrize("clamp", [None, (7.0, 1.702)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_moe_is_the_weighted_sum_of_each_tokens_experts(clamp, packed, tokens):
    experts, hidden, inter, chosen = 5, 32, 64, 3
    gate_up, down = (
        normal(experts, 2 * inter, hidden, seed=1),
        normal(experts, hidden, inter, seed=2),
    )
    gate_up_bias, down_bias = normal(experts, 2 * inter, seed=3), normal(experts, hidden, seed=4)
    x, weights = normal(tokens, hidden, seed=5), normal(tokens, chosen, seed=6).softmax(-1)
    ids = choices(tokens, experts, chosen)
    stacks, dense = (gate_up, down), (gate_up, down)
    if packed:
        stacks = (quantize(gate_up), quantize(down))
        dense = tuple(unpack(stack, torch.float32) for stack in stacks)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for e, weight in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            h = dense[0][e].double() @ x[t].double() + gate_up_bias[e].double()
            g, u = h[0::2], h[1::2]
            if clamp:
                g, u = g.clamp(max=7), u.clamp(-7, 7)
                act = g * torch.sigmoid(1.702 * g) * (u + 1)
            else:
                act = g * torch.sigmoid(g) * u
            expected[t] += weight * (dense[1][e].double() @ act + down_bias[e].double())
    matrices = (stacks[0], gate_up_bias, stacks[1], down_bias)
    found = reference.moe(x, ids, weights, *matrices, clamp=clamp)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("clamp", [None, (1.0, 1.702)])
def test_gradients_of_moe_are_right_those_of_the_weights_and_of_idle_experts_too(clamp):
    experts, hidden, inter = 4, 3, 5
    ids = choices(6, experts - 1, 2)  # the last expert is idle
    shapes = [(6, hidden), (6, 2), (experts, 2 * inter, hidden), (experts, 2 * inter)]
    shapes += [(experts, hidden, inter), (experts, hidden)]
    tensors = [normal(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]

    def mix(x, weights, *matrices):
        return reference.moe(x, ids, weights, *matrices, clamp=clamp)

    assert torch.autograd.gradcheck(mix, [tensor.requires_grad_() for tensor in tensors])


def test_keys_and_values_in_int8_err_by_half_a_step():
    x = normal(50, 3, 16) * torch.logspace(-20, 20, 50)[:, None, None]
    codes, scales = quantize_kv(x)
    assert codes.dtype is torch.int8
    assert scales.shape == (50, 3)
    steps = x.double().abs().amax(-1, keepdim=True) / 127
    assert ((codes * scales[..., None].double() - x).abs() <= steps * 0.50001).all()
    assert codes.abs().amax() == 127


def test_zeros_stay_zeros_in_int8_and_what_is_no_number_spoils_its_head():
    x = torch.zeros(1, 4, 6)
    x[0, 1, 2], x[0, 2, 3], x[0, 3, 4] = torch.nan, torch.inf, 1e-45
    codes, scales = quantize_kv(x)
    found = codes * scales[..., None]
    assert (found[0, 0] == 0).all()
    assert found[0, 1:3].isnan().all()
    assert (found[0, 3] == 0).all()  # below what a scale can say


def test_fp8_is_the_nearest_of_its_numbers():
    """Of two as near the one with an even last bit, and never one beyond the largest, 448."""
    between = (E4M3[1:] + E4M3[:-1]) / 2
    x = torch.cat([E4M3, between, between * 1.001, between * 0.999, normal(500).abs() * 300])
    x = torch.cat([x, -x, torch.tensor([449.0, 1e30, -1e30])]).float()
    distances = (x.double().abs().clamp(max=500)[:, None] - E4M3).abs()
    nearest = distances.argmin(1)  # the lower of two as near
    upper = (nearest + 1).clamp(max=len(E4M3) - 1)
    rows = torch.arange(len(x))
    tie = (distances[rows, nearest] == distances[rows, upper]) & (nearest % 2 == 1)
    expected = E4M3[torch.where(tie, upper, nearest)] * x.double().sign()
    assert torch.equal(to_fp8(x).double(), expected)
    assert to_fp8(torch.tensor([torch.nan, torch.inf, -torch.inf])).float().isnan().all()


@pytest.mark.parametrize("rotated", [False, True])
def test_pages_of_fp8_hold_what_is_rounded(rotated):
    kind = LayerKind(None, 2, 6)
    pool = PagePool([kind], {kind: 3}, page_size=4, dtype=FP8)
    assert pool.nbytes == 2 * 3 * 4 * 2 * 6
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    kv = PagedKV(pool, {kind: table}, torch.tensor([9]), torch.tensor([9])).layer(0)
    q, k, v = normal(9, 4, 6), normal(9, 2, 6, seed=1), normal(9, 2, 6, seed=2)
    angles = normal(9, 3, seed=3)
    rotation = (angles.cos(), angles.sin()) if rotated else None
    found = reference.paged_attention(q, k, v, kv, rotation=rotation)
    if rotation:
        q, k = reference.rotate(q, *rotation), reference.rotate(k, *rotation)
    expected = naive_attention(q, to_fp8(k).float(), to_fp8(v).float(), None, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rotated", [False, True])
def test_pages_of_int8_hold_what_is_quantized(rotated):
    kind = LayerKind(None, 2, 6)
    pool = PagePool([kind], {kind: 3}, page_size=4, dtype=torch.int8)
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    kv = PagedKV(pool, {kind: table}, torch.tensor([9]), torch.tensor([9])).layer(0)
    q, k, v = normal(9, 4, 6), normal(9, 2, 6, seed=1), normal(9, 2, 6, seed=2)
    angles = normal(9, 3, seed=3)
    rotation = (angles.cos(), angles.sin()) if rotated else None
    found = reference.paged_attention(q, k, v, kv, rotation=rotation)
    if rotation:
        q, k = reference.rotate(q, *rotation), reference.rotate(k, *rotation)
    k, v = (codes * scales[..., None] for codes, scales in map(quantize_kv, (k, v)))
    expected = naive_attention(q, k, v, None, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
