"""Input that no good checkpoint or engine sends. Wrong numbers come out as the reference's do,
wrong shapes and ids are refused, and in no case is memory touched that is not a tensor's: `form`
runs each operation between fences too.
"""

from dataclasses import replace

import pytest
import torch

from ossia.ops.int8 import Int8, quantize
from ossia.ops.mxfp4 import unpack
from ossia.ops.paged import LayerKind, LayerKV, PagedKV, PagePool
from tests.ops.cpu.common import native, normal, packed, relative_error
from tests.ops.flat import reference

NAN, INF = float("nan"), float("inf")
SPOILS = (NAN, INF, -INF)
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
REFUSED = (ValueError, IndexError)  # and no assertion, which `python -O` would leave out


def refuses(form, operation, *arguments, **options):
    """No result, and no process that died."""
    with pytest.raises(REFUSED) as refused:
        form(operation, *arguments, **options)
    assert "died" not in str(refused.value)


def same_where_finite(found, expected, error: float):
    """Numbers where the reference has numbers; where it has none, none either."""
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found.isnan(), expected.isnan())
    if finite.any():
        assert relative_error(found[finite], expected[finite]) <= error


# Dense matrices


@BOTH
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tokens", [1, 5])
def test_dense_weights_that_are_no_numbers_spoil_their_own_rows(form, dtype, transposed, tokens):
    weight, x = normal(37, 50, dtype=dtype), normal(tokens, 50, seed=1, dtype=dtype)
    for row, bad in zip((0, 16, 36), SPOILS, strict=True):
        weight[row, 3 * row % 50] = bad
    weight = weight.T.contiguous().T if transposed else weight
    expected = reference.linear(x, weight)
    same_where_finite(
        form(native.linear, x, weight), expected, 1e-6 if dtype.itemsize == 4 else 8e-3
    )


@BOTH
def test_activations_that_are_no_numbers_spoil_their_own_token(form, dtype):
    weight, x = normal(37, 50, dtype=dtype), normal(6, 50, seed=1, dtype=dtype)
    healthy = form(native.linear, x, weight)
    for token, bad in enumerate(SPOILS):
        x[2 * token, 49] = bad
    found = form(native.linear, x, weight)
    assert not found[::2].isfinite().any()
    assert torch.equal(found[1::2], healthy[1::2])


@BOTH
@pytest.mark.parametrize("tokens", [6, 20])
def test_int8_of_what_are_no_numbers_spoils_its_own_token_or_row(form, dtype, tokens):
    weight, x = quantize(normal(37, 150)), normal(tokens, 150, seed=1, dtype=dtype)
    healthy = form(native.linear, x, weight)
    for token, bad in enumerate(SPOILS):
        x[2 * token, 149] = bad
    found = form(native.linear, x, weight)
    assert not found[:6:2].isfinite().any()
    assert torch.equal(found[1::2], healthy[1::2])
    for row, bad in zip((0, 16, 36), SPOILS, strict=True):
        weight.scales[row, row % 2] = bad
    found = form(native.linear, x, weight)
    sick = [0, 16, 36]
    well = [row for row in range(37) if row not in sick]
    assert not found[:, sick].isfinite().any()
    assert torch.equal(found[1::2, well], healthy[1::2, well])


@BOTH
def test_int8_whose_parts_do_not_fit_is_refused(form, dtype):
    weight, x = quantize(normal(8, 150)), normal(2, 150, dtype=dtype)
    for wrong in (
        Int8(weight.codes, weight.scales[:, :1]),
        Int8(weight.codes, weight.scales[:7]),
        Int8(weight.codes, weight.scales.bfloat16()),
        Int8(weight.codes[:, :128], weight.scales),
        Int8(weight.codes.short(), weight.scales),
        Int8(weight.codes.view(torch.uint8), weight.scales),
        Int8(weight.codes, weight.scales.double()),
        Int8(weight.codes[0], weight.scales),
    ):
        refuses(form, native.linear, x, wrong)
        refuses(form, native.linears, x, [weight, wrong], [None, None])
    refuses(form, native.linears, x, [weight, weight], [None, normal(7, dtype=dtype)])
    refuses(form, native.linears, x[:, :149], [weight, weight], [None, None])


@BOTH
def test_rows_may_lie_over_one_another_far_apart_or_nowhere(form, dtype):
    memory = normal(3_000_000, dtype=dtype)
    for rows, cols, stride in (
        (5, 7, (0, 1)),
        (5, 7, (1, 1)),
        (5, 7, (1, 0)),
        (3, 40, (1_400_001, 1)),
        (40, 3, (1, 1_400_001)),
        (1, 1, (9, 9)),
        (0, 8, (8, 1)),
        (4, 0, (1, 1)),
    ):
        weight = memory.as_strided((rows, cols), stride, 1)
        x = normal(3, cols, seed=1, dtype=dtype)
        expected = x.double() @ weight.double().T
        found = form(native.linear, x, weight)
        assert found.shape == expected.shape
        assert (found.double() - expected).norm() <= 1e-2 * expected.norm()


def test_a_linear_layer_whose_parts_do_not_fit_is_refused(form):
    weight, x = normal(8, 6), normal(2, 6)
    refuses(form, native.linear, normal(2, 5), weight)
    refuses(form, native.linear, normal(3, 4), weight)  # as many numbers, in another shape
    refuses(form, native.linear, x, weight, normal(7))
    refuses(form, native.linear, x, weight, normal(1))


# Experts


def unpacked_moe(x, experts, weights, gate_up, down, **options):
    """In float64, from the dense matrices."""
    first, last = (unpack(matrix, torch.float32).double() for matrix in (gate_up, down))
    return reference.moe(x.double(), experts, weights.double(), first, None, last, None, **options)


@BOTH
@pytest.mark.parametrize("hidden", [32, 96, 160])
def test_every_code_and_every_scale(form, dtype, hidden):
    gate_up, down = packed(1, 64, hidden, seed=1), packed(1, hidden, 32, seed=2)
    gate_up.blocks.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    x, ids, weights = normal(2, hidden, dtype=dtype), torch.zeros(2, 1).long(), torch.ones(2, 1)
    for scale in (0, 1, 64, 127, 140):
        gate_up.scales[0, 5] = scale
        expected = unpacked_moe(x, ids, weights, gate_up, down)
        found = form(native.moe, x, ids, weights, gate_up, None, down, None)
        assert relative_error(found, expected) <= (2e-6 if dtype.itemsize == 4 else 8e-3)


@BOTH
@pytest.mark.parametrize("clamp", [None, (7.0, 1.702)])
@pytest.mark.parametrize("code", [0, 0x77])
def test_a_scale_that_is_no_number_spoils_what_it_scales(form, dtype, clamp, code):
    x, weights = normal(3, 96, dtype=dtype), torch.ones(3, 1)
    ids = torch.tensor([[0], [1], [0]])
    for sick in range(2):
        matrices = [packed(2, 64, 96, seed=1), packed(2, 96, 32, seed=2)]
        healthy = form(
            native.moe, x, ids, weights, matrices[0], None, matrices[1], None, clamp=clamp
        )
        matrices[sick].scales[1, 5, 0] = 255
        matrices[sick].blocks[1, 5, 0] = code
        found = form(native.moe, x, ids, weights, matrices[0], None, matrices[1], None, clamp=clamp)
        expected = reference.moe(x, ids, weights, matrices[0], None, matrices[1], None, clamp=clamp)
        assert expected[1].isnan().any()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[[0, 2]], healthy[[0, 2]])


def test_experts_whose_parts_do_not_fit_are_refused(form):
    gate_up, down = packed(3, 64, 96), packed(3, 96, 32)
    x, ids, weights = normal(2, 96), torch.tensor([[0, 2], [1, 2]]), torch.ones(2, 2)
    for arguments in (
        (x[:, :64], ids, weights, gate_up, None, down, None),
        (x, ids[:1], weights, gate_up, None, down, None),
        (x, ids, weights[:, :1], gate_up, None, down, None),
        (x, ids, weights, gate_up[:2], None, down, None),
        (x, ids, weights, packed(3, 64, 64), None, down, None),
        (x, ids, weights, gate_up, normal(3, 63), down, None),
        (x, ids, weights, gate_up, normal(2, 64), down, None),
        (x, ids, weights, gate_up, None, down, normal(96)),
        (x, ids - 1, weights, gate_up, None, down, None),
        (x, ids + 1, weights, gate_up, None, down, None),
        (x, ids + (1 << 62), weights, gate_up, None, down, None),
        (x, ids - (1 << 63), weights, gate_up, None, down, None),
    ):
        refuses(form, native.moe, *arguments)


# Attention


def cached(
    lengths,
    counts,
    *,
    page_size=4,
    heads=2,
    dim=8,
    window=None,
    dtype=torch.float32,
    unseen=0.0,
):
    """Pages with numbers where a query can see, and `unseen` elsewhere; none that lie before."""
    kind = LayerKind(window, heads, dim)
    columns = -(-max(lengths) // page_size)
    pool = PagePool([kind], {kind: len(lengths) * columns}, page_size=page_size, dtype=dtype)
    order = torch.randperm(len(lengths) * columns, generator=torch.Generator().manual_seed(6))
    table = order.view(len(lengths), columns).int()
    for i, storage in enumerate((pool.keys[kind][0], pool.values[kind][0])):
        storage.fill_(unseen)
        for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            for position in range(max(0, length - count + 1 - (window or length)), length):
                page = table[sequence, position // page_size]
                storage[page, position % page_size] = normal(heads, dim, seed=8 + i).to(storage)
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[sequence, -(-length // page_size) :] = -1
        table[sequence, : max(0, length - count + 1 - (window or length)) // page_size] = -1
    return PagedKV(pool, {kind: table}, torch.tensor(lengths), torch.tensor(counts)).layer(0)


def step(count, *, heads=4, kv_heads=2, dim=8, dtype=torch.float32):
    return (
        normal(count, heads, dim, dtype=dtype),
        normal(count, kv_heads, dim, seed=1, dtype=dtype),
        normal(count, kv_heads, dim, seed=2, dtype=dtype),
    )


@BOTH
@pytest.mark.parametrize("window", [None, 3])
def test_what_no_query_sees_may_be_anything(form, dtype, window):
    """Pages are not cleared before use, and those before a window are another's."""
    for length, count in ((1, 1), (4, 1), (6, 6), (11, 1), (11, 3)):
        tables = [[length, 5], [count, 5]]
        tokens = step(count + 5, dtype=dtype)
        clean, dirty = (
            cached(*tables, window=window, dtype=dtype, unseen=bad) for bad in (0.0, NAN)
        )
        expected = form(native.paged_attention, *tokens, clean)
        assert expected.isfinite().all()
        assert torch.equal(form(native.paged_attention, *tokens, dirty), expected)


@BOTH
@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("sink", [None, 0.5, INF, -INF, NAN])
def test_attention_of_what_are_no_numbers_is_the_references(form, dtype, part, sink):
    sinks = None if sink is None else torch.full((4,), sink)

    def attend(operation, tokens):
        return operation(*tokens, cached([6], [6], dtype=dtype), sinks=sinks)

    healthy = form(attend, native.paged_attention, step(6, dtype=dtype))
    for bad in SPOILS:
        tokens = step(6, dtype=dtype)
        tokens["qkv".index(part)][3, 1, 2] = bad
        found = form(attend, native.paged_attention, tokens)
        # The reference multiplies also what a token cannot see, by 0.
        assert torch.equal(found[:3].nan_to_num(), healthy[:3].nan_to_num())
        same_where_finite(found[3:], attend(reference.paged_attention, tokens)[3:], 1e-2)


def test_attention_whose_parts_do_not_fit_is_refused(form):
    q, k, v = step(3)
    kv = cached([6, 5], [2, 1], dtype=torch.float32)
    tables = kv.tables

    def with_tables(**changes):
        return replace(kv, tables=replace(tables, **changes))

    def numbers(*values):
        return torch.tensor(values)

    for arguments in (
        (q[:2], k, v, kv),
        (q, k[:2], v, kv),
        (q, k, v[:, :1], kv),
        (q[:, :3], k, v, kv),  # three heads over two
        (q, k[..., :4], v[..., :4], kv),
        (q, k, v, with_tables(lengths=numbers(6))),
        (q, k, v, with_tables(query_lengths=numbers(3))),
        (q, k, v, with_tables(query_lengths=numbers(2, 2))),
        (q, k, v, with_tables(query_lengths=numbers(1, 1))),
        (q, k, v, with_tables(query_lengths=numbers(4, -1))),
        (q, k, v, with_tables(lengths=numbers(6, 0))),
        (q, k, v, with_tables(lengths=numbers(6, -5), query_lengths=numbers(3, 0))),
        (q, k, v, with_tables(lengths=numbers(9, 5))),
        (q, k, v, with_tables(lengths=numbers(1 << 62, 5))),
        (q, k, v, with_tables(page_table=tables.page_table[:1])),
        (q, k, v, with_tables(page_table=tables.page_table[:, :1])),
        (q, k, v, with_tables(page_table=tables.page_table - 1)),
        (q, k, v, with_tables(page_table=tables.page_table + 100)),
        (q, k, v, with_tables(page_table=tables.page_table - (1 << 31))),
        (q, k, v, LayerKV(kv.keys, kv.values[:2], tables)),
        (q, k, v, LayerKV(kv.keys[..., :7], kv.values[..., :7], tables)),
        (q, k, v, replace(kv, keys=kv.keys.to(torch.int8), values=kv.values.to(torch.int8))),
        (q, k, v, replace(kv, key_scales=kv.keys[..., 0], value_scales=kv.values[..., 0])),
        (q[:, :0], k, v, kv),
        (q, k[:, :0], v[:, :0], replace(kv, keys=kv.keys[:, :, :0], values=kv.values[:, :, :0])),
        (q, k, v, replace(kv, keys=kv.keys[:, :0], values=kv.values[:, :0])),
        (q, k, v, replace(kv, keys=kv.keys.transpose(1, 2), values=kv.values.transpose(1, 2))),
        *((q, k, v, with_tables(window=window)) for window in (-1, -100, -(1 << 62))),
    ):
        refuses(form, native.paged_attention, *arguments)
    for sinks in (normal(3), normal(1), normal(5)):
        refuses(form, native.paged_attention, q, k, v, kv, sinks=sinks)
    angles = normal(3, 4)
    for rotation in (
        (angles[:2], angles[:2]),
        (angles, angles[:, :3]),
        (angles[:, :3],) * 2,
        (angles, angles.double()),
        (angles, angles.bfloat16()),
        (angles, angles.int()),
    ):
        refuses(form, native.paged_attention, q, k, v, kv, rotation=rotation)


def test_scales_of_int8_pages_that_do_not_fit_are_refused(form):
    q, k, v = step(3)
    kv = cached([6, 5], [2, 1], dtype=torch.int8)
    scales = torch.ones(kv.keys.shape[:3])
    for key_scales, value_scales in (
        (None, None),
        (scales, None),
        (scales[:2], scales),
        (scales, scales[..., :1]),
        (scales.double(), scales),
        (scales, scales.bfloat16()),
        (scales.int(), scales.int()),
    ):
        refused = replace(kv, key_scales=key_scales, value_scales=value_scales)
        refuses(form, native.paged_attention, q, k, v, refused)


def test_tables_that_lie_scattered_are_read_as_what_they_are(form):
    tokens, kv = step(3), cached([6, 5], [2, 1], dtype=torch.float32)
    expected = form(native.paged_attention, *tokens, kv)
    apart = {
        name: getattr(kv.tables, name).repeat_interleave(2, 0)[::2]
        for name in ("page_table", "lengths", "query_lengths")
    }
    found = form(native.paged_attention, *tokens, replace(kv, tables=replace(kv.tables, **apart)))
    assert torch.equal(found, expected)


# Small operations


@BOTH
def test_norms_and_rotations_of_what_are_no_numbers_are_the_references(form, dtype):
    x = normal(8, 3, 20, dtype=dtype)
    for token, bad in enumerate(SPOILS):
        x[2 * token, 1, 7] = bad
    weight, angles = normal(20, dtype=dtype), normal(8, 10)
    for before in (False, True):
        found = form(native.rms_norm, x, weight, 1e-5, round_before_weight=before)
        expected = reference.rms_norm(x, weight, 1e-5, round_before_weight=before)
        same_where_finite(found, expected, 1e-2)
    found = form(native.rotate, x, angles.cos(), angles.sin())
    same_where_finite(found, reference.rotate(x, angles.cos(), angles.sin()), 1e-2)


def test_small_operations_whose_parts_do_not_fit_are_refused(form):
    x, angles = normal(4, 3, 10), normal(4, 5)
    refuses(form, native.rms_norm, x, normal(9), 1e-5, round_before_weight=False)
    refuses(form, native.rms_norm, x, normal(2, 5), 1e-5, round_before_weight=False)
    refuses(form, native.rotate, x, angles[:3], angles[:3])
    refuses(form, native.rotate, x, angles, angles[:, :4])
    refuses(form, native.rotate, normal(4, 3, 9), angles[:, :4], angles[:, :4])
