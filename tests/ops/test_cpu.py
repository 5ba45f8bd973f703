"""The native kernels, in every instruction set this processor has, are the reference."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.ops import REFERENCE, reference, select
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.paged import LayerKind, PagedKV, PagePool

if shutil.which("c++") is None:
    cpu = pytest.importorskip("ossia.ops.cpu", reason="no compiler, so no native kernels")
else:  # with a compiler they must be there: a build that fails falls back in silence
    from ossia.ops import cpu

ISAS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="module", params=ISAS)
def isa(request) -> str:
    try:
        cpu.Machine(1, request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


class Forms:
    """Machines of one thread and of three, in one instruction set, in the backend's place."""

    def __init__(self, isa: str) -> None:
        self.machines = [cpu.Machine(threads, isa) for threads in (1, 3)]

    def __call__(self, operation, *arguments, **options) -> torch.Tensor:
        """The operation's result, which no number of threads changes."""
        results = []
        for machine in self.machines:
            with cpu.using(machine), torch.no_grad():
                results.append(operation(*arguments, **options))
        assert torch.equal(results[0].nan_to_num(), results[1].nan_to_num())
        return results[0]


@pytest.fixture(scope="module")
def form(isa) -> Forms:
    return Forms(isa)


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(*shape: int, seed: int = 0) -> MXFP4:
    *rows, cols = shape
    generator = torch.Generator().manual_seed(seed)
    return MXFP4(
        torch.randint(0, 256, (*rows, cols // 32, 16), generator=generator, dtype=torch.uint8),
        torch.randint(115, 125, (*rows, cols // 32), generator=generator, dtype=torch.uint8),
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# What rounding the result to the type costs; sums are in float32 in both.
RESULT_ERROR = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
FEW = settings(max_examples=25, deadline=None)


@FEW
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 200),
    tokens=st.integers(1, 16),
    dtype=DTYPES,
    bias=st.booleans(),
    gap=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_linear(form, rows, cols, tokens, dtype, bias, gap, transposed):
    rows *= 5 if transposed else 1  # whole blocks of rows, and single ones
    x = normal(tokens, cols, dtype=dtype)
    # Rows may lie apart, or columns if the matrix lies transposed.
    if transposed:
        weight = normal(cols, rows + gap, seed=1, dtype=dtype)[:, :rows].T
    else:
        weight = normal(rows, cols + gap, seed=1, dtype=dtype)[:, :cols]
    b = normal(rows, seed=2, dtype=dtype) if bias else None
    expected = x.double() @ weight.double().T + (b.double() if bias else 0)
    found = form(cpu.linear, x, weight, b)
    assert found.dtype is dtype
    sums = 1e-6 * x.double().norm() * weight.double().norm()  # in float32, large terms may cancel
    assert (found.double() - expected).norm() <= RESULT_ERROR[dtype] * expected.norm() + sums


@FEW
@given(
    tokens=st.integers(1, 9),
    count=st.integers(1, 6),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([32, 64, 96, 160, 288]),
    inter=st.sampled_from([32, 96, 128]),
    dtype=DTYPES,
    bias=st.booleans(),
    clamp=st.sampled_from([None, (7.0, 1.702)]),
)
def test_moe(form, tokens, count, chosen, hidden, inter, dtype, bias, clamp):
    chosen = min(chosen, count)
    x = normal(tokens, hidden, dtype=dtype)
    choices = normal(tokens, count, seed=1)
    weights, experts = choices.softmax(-1).topk(chosen)
    biases = (
        (normal(count, 2 * inter, seed=2, dtype=dtype), normal(count, hidden, seed=3, dtype=dtype))
        if bias
        else (None, None)
    )
    gate_up, down = packed(count, 2 * inter, hidden, seed=4), packed(count, hidden, inter, seed=5)
    arguments = (experts, weights, gate_up, biases[0], down, biases[1])
    found = form(cpu.moe, x, *arguments, clamp=clamp)
    wide = [None if b is None else b.float() for b in biases]
    arguments = (experts, weights, gate_up, wide[0], down, wide[1])
    expected = reference.moe(x.float(), *arguments, clamp=clamp)
    # As int16 the activations err by 3e-5 of the largest one, far below what bfloat16 costs.
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype]


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


@FEW
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 100),
    dtype=DTYPES,
    before=st.booleans(),
    large=st.booleans(),
)
def test_rms_norm(form, rows, size, dtype, before, large):
    rows *= 2000 if large else 1  # beyond what one thread does
    x, weight = normal(rows, size, dtype=dtype) * 3, normal(size, seed=1, dtype=dtype)
    found = form(cpu.rms_norm, x, weight, 1e-5, round_before_weight=before)
    expected = reference.rms_norm(x, weight, 1e-5, round_before_weight=before)
    # A last bit of float32 can tip a rounding to bfloat16.
    assert relative_error(found, expected) <= (1e-6 if dtype is torch.float32 else 1e-3)


@FEW
@given(
    tokens=st.sampled_from([1, 3, 500]),
    heads=st.integers(1, 5),
    half=st.sampled_from([1, 5, 32]),
    dtype=DTYPES,
)
def test_rotate(form, tokens, heads, half, dtype):
    x, angles = normal(tokens, heads, 2 * half, dtype=dtype), normal(tokens, half, seed=1)
    found = form(cpu.rotate, x, angles.cos(), angles.sin())
    expected = reference.rotate(x, angles.cos(), angles.sin())
    assert relative_error(found, expected) <= (1e-6 if dtype is torch.float32 else 1e-3)


def test_a_token_with_nan_or_infinity_spoils_itself_only(form):
    gate_up, down = packed(2, 64, 32, seed=4), packed(2, 32, 32, seed=5)
    x = normal(3, 32)
    experts, weights = torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5)

    def moe(x):
        return form(cpu.moe, x, experts, weights, gate_up, None, down, None)

    healthy = moe(x)
    for bad in (float("nan"), float("inf"), -float("inf")):
        sick = x.clone()
        sick[1, 5] = bad
        found = moe(sick)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], healthy[[0, 2]])


def test_hostile_ids_and_pages_are_refused_not_read(form):
    gate_up, down = packed(2, 64, 32), packed(2, 32, 32)
    x, weights = normal(1, 32), torch.ones(1, 1)
    for expert in (-1, 2, 1 << 40):
        with pytest.raises(IndexError, match="expert id"):
            form(cpu.moe, x, torch.tensor([[expert]]), weights, gate_up, None, down, None)
    kind = LayerKind(None, 1, 4)
    pool = PagePool([kind], {kind: 2}, page_size=2, dtype=torch.float32)
    token = normal(1, 1, 4)
    for pages, length in (([0, -1], 3), ([0, 2], 3), ([0, 1], 5)):
        table = torch.tensor([pages], dtype=torch.int32)
        kv = PagedKV(pool, {kind: table}, torch.tensor([length]), torch.tensor([1])).layer(0)
        with pytest.raises(IndexError, match="page"):
            form(cpu.paged_attention, token, token, token, kv)


def test_callers_in_many_threads_take_turns(form):
    x, weight = normal(4, 200), normal(300, 200, seed=1)
    expected = form(cpu.linear, x, weight)
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda _: cpu.linear(x, weight), range(200))
        assert all(torch.allclose(result, expected, rtol=1e-4, atol=1e-4) for result in results)


def test_a_batch_gives_each_token_the_bits_it_gets_alone(form):
    x, weight = normal(11, 100), normal(37, 100, seed=1)
    for matrix in (weight, weight.T.contiguous().T):
        alone = torch.cat([form(cpu.linear, row[None], matrix) for row in x])
        assert torch.equal(form(cpu.linear, x, matrix), alone)


def test_what_the_kernels_do_not_do_the_reference_does():
    weight = normal(8, 6).requires_grad_()
    cpu.linear(normal(2, 6, seed=1), weight).sum().backward()
    assert weight.grad is not None
    half = cpu.linear(normal(2, 6).half(), normal(8, 6).half())
    assert half.dtype is torch.float16
    scattered = normal(8, 12)[:, ::2]
    x = normal(2, 6, seed=1)
    assert torch.equal(cpu.linear(x, scattered), reference.linear(x, scattered))


def test_a_router_trained_over_packed_experts_gets_its_gradient():
    gate_up, down = packed(2, 64, 32), packed(2, 32, 32, seed=1)
    weights = torch.full((1, 2), 0.5, requires_grad=True)
    cpu.moe(
        normal(1, 32), torch.tensor([[0, 1]]), weights, gate_up, None, down, None
    ).sum().backward()
    assert weights.grad is not None
    assert weights.grad.abs().min() > 0


def test_ids_and_weights_of_other_types_are_read_as_what_they_are(form):
    gate_up, down = packed(3, 64, 32), packed(3, 32, 32, seed=1)
    x, experts, weights = normal(2, 32), torch.tensor([[0, 2], [1, 2]]), torch.full((2, 2), 0.25)
    expected = form(cpu.moe, x, experts, weights, gate_up, None, down, None)
    found = form(cpu.moe, x, experts.int(), weights.double(), gate_up, None, down, None)
    assert torch.equal(found, expected)


def test_the_native_backend_is_chosen_on_a_cpu_and_another_by_name():
    assert select("auto", "cpu") is cpu.CPU
    assert select("reference", "cpu") is REFERENCE


def test_an_instruction_set_the_processor_lacks_is_named():
    code = "from ossia.ops import select; select()"
    environment = {**os.environ, "OSSIA_CPU_ISA": "sse9"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "OSSIA_CPU_ISA=sse9: this processor runs portable" in run.stderr
