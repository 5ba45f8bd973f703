"""The border of the native module: what its values hold, and that nothing wrong gets past it."""

import gc
import subprocess
import sys
import threading

import pytest
import torch

from tests.ops.cpu.common import cpu, normal  # which skips where there are no native kernels

_native = pytest.importorskip("ossia.ops._native")


@pytest.fixture(scope="module")
def machine():
    return cpu.Machine(2, "")


def churn() -> list[torch.Tensor]:
    """Memory of many sizes that is not zero: what was freed is soon another's."""
    gc.collect()
    return [torch.full((size,), 7.0) for size in (16, 64, 100, 1000, 10_000) for _ in range(50)]


def test_a_matrix_keeps_its_tensors(machine):
    x, weight, bias = normal(3, 100), normal(100, 100, seed=1), normal(100, seed=2)
    expected = x @ weight.T + bias
    matrix = _native.Matrix(weight.clone(), bias.clone())
    kept = churn()
    y = torch.empty(3, 100)
    machine.linear(x, matrix, y)
    assert torch.allclose(y, expected, atol=1e-4)
    assert matrix.scales is None
    assert torch.equal(matrix.weight, weight)
    assert matrix.bias is not None
    assert matrix.group == 0
    del kept


def test_values_within_values_keep_their_tensors():
    weight, bias = normal(2, 8, 4), normal(2, 8, seed=1)
    experts = _native.Experts(
        _native.Stack(weight.clone(), bias.clone()), _native.Stack(normal(2, 4, 4))
    )
    kept = churn()
    assert torch.equal(experts.gate_up.weight, weight)
    assert experts.gate_up.bias is not None
    assert torch.equal(experts.gate_up.bias, bias)
    del kept


def test_a_recording_keeps_all_that_it_uses(machine):
    weight, before = normal(100, 100, seed=1), normal(3, 100)
    expected = before @ weight.T
    x, y = before.clone(), torch.empty(3, 100)
    recording = _native.Recording()
    recording.begin()
    with cpu.using(machine), torch.inference_mode():
        hidden = torch.empty(3, 100)
        machine.linear(x, _native.Matrix(weight.clone()), hidden)
        machine.gelu(hidden, y)
    recording.end()
    del hidden
    kept = churn()
    y.zero_()
    recording.run()
    assert torch.allclose(y, torch.nn.functional.gelu(expected, approximate="tanh"), atol=1e-4)
    del kept


def test_arguments_of_another_kind_are_type_errors(machine):
    x, matrix = normal(3, 8), _native.Matrix(normal(5, 8))
    y = torch.empty(3, 5)
    for wrong in (
        (x.data_ptr(), matrix, y),
        (x, x, y),
        (x, matrix, None),
        (x, matrix),
        (x.numpy(), matrix, y),
        (x.to_sparse(), matrix, y),
    ):
        with pytest.raises(TypeError):
            machine.linear(*wrong)


def test_tensors_that_no_kernel_reads_are_named(machine):
    x, matrix, y = normal(3, 8), _native.Matrix(normal(5, 8)), torch.empty(3, 5)
    for wrong in (
        x.half(),
        x.double(),
        x.to("meta"),
        x.to(torch.complex64),
        x.bool(),
        x.view(3, 1, 1, 1, 1, 1, 8),
    ):
        with pytest.raises(ValueError, match=r"^x: expected bfloat16 or float32"):
            machine.linear(wrong, matrix, y)
    with pytest.raises(ValueError, match=r"^y: .*float32 \(3, 4\)"):
        machine.linear(x, matrix, torch.empty(3, 4))
    with pytest.raises(ValueError, match=r"^x: .*\(3, 8\) that is not contiguous"):
        machine.linear(normal(8, 3).T, matrix, y)


def test_swapped_arguments_are_refused(machine):
    """Of those that have other shapes or types; nothing tells x from y where both are alike."""
    x, matrix, y = normal(3, 8), _native.Matrix(normal(5, 8)), torch.empty(3, 5)
    ids, weights = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)
    stacks = _native.Stack(normal(4, 16, 8)), _native.Stack(normal(4, 8, 8))
    experts = _native.Experts(*stacks)
    for call in (
        lambda: machine.linear(y, matrix, x),
        lambda: machine.moe(x, weights, ids, experts, torch.empty(3, 8)),
        lambda: _native.Experts(*reversed(stacks)),
        lambda: machine.route(normal(3, 4), weights, ids, False, False),
        lambda: machine.quantize_int8(torch.empty(3, 8, dtype=torch.int8), x, weights[:, :1], 128),
        lambda: machine.embed(ids, y, y),
        lambda: machine.rope_table(ids[0], normal(4), 1.0, torch.empty(2, 4), torch.empty(2, 3)),
        lambda: _native.Tables(ids[:, :1].contiguous(), ids.int(), ids[:, 0].contiguous()),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_a_storage_that_was_given_up_is_no_memory(machine):
    x, matrix, y = normal(3, 8), _native.Matrix(normal(5, 8)), torch.empty(3, 5)
    x.untyped_storage().resize_(0)  # as FSDP does between uses
    with pytest.raises(ValueError, match="without memory"):
        machine.linear(x, matrix, y)
    with pytest.raises(ValueError, match="without memory"):
        machine.gelu(torch._efficientzerotensor(3, 5), y)  # type: ignore[attr-defined]


@pytest.mark.parametrize("group", [0, -32, 31, 288, 1 << 62, (1 << 63) - 32])
def test_groups_that_no_sum_is_exact_for_are_refused(machine, group):
    codes, scales = torch.zeros(4, 64, dtype=torch.int8), torch.zeros(4, 1)
    with pytest.raises(ValueError, match="group: expected a multiple of 32 up to 256"):
        _native.Matrix(codes, None, scales, group)
    with pytest.raises(ValueError, match="group: expected a multiple of 32 up to 256"):
        machine.quantize_int8(normal(4, 64), codes, scales, group)


def test_values_that_no_sampling_has_are_refused(machine):
    """Ranks and bins are computed of them, and would lie outside the vocabulary's."""
    good = {"scale": 1.0, "top_k": 9, "top_p": 0.5, "log2_min_p": -1.0, "uniforms": 0.5}
    types = {"top_k": torch.int64, "top_p": torch.float64, "uniforms": torch.float64}
    nan, inf = float("nan"), float("inf")
    wrong = {
        "scale": (-1.0, nan, inf, 1e-40, 1e35),
        "top_k": (0, -1, -(1 << 63)),
        "top_p": (0.0, -0.1, 1.1, nan, inf),
        "log2_min_p": (0.1, nan, inf),
        "uniforms": (-0.1, 1.1, nan, inf),
    }

    def sample(values: dict):
        columns = [
            torch.tensor([[value]], dtype=types.get(name, torch.float32))
            for name, value in values.items()
        ]
        table = _native.SamplingTable(*columns, None, _native.Edits())
        ids = torch.full((1,), -7)
        machine.sample(normal(1, 100), table, ids)
        return ids.item()

    assert 0 <= sample(good) < 100
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name}: expected"):
                sample({**good, name: value})


def test_results_over_what_says_where_they_go_are_refused(machine):
    ids, table = torch.zeros(4, dtype=torch.int64), normal(10, 2)
    with pytest.raises(ValueError, match="y: expected memory apart"):
        machine.embed(ids, table, ids.view(torch.float32).view(4, 2))
    rows = normal(2, 2)
    lengths = rows.view(torch.int64).view(2)[:1]
    pages = _native.Pages(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2))
    tables = _native.Tables(torch.zeros(1, 1, dtype=torch.int32), lengths, torch.ones(1).long())
    with pytest.raises(ValueError, match="expected memory apart"):
        machine.paged_attention(*[rows.view(2, 1, 2)[:1]] * 4, pages, tables)


def test_a_recording_is_made_once_and_then_run():
    x, weight, y = normal(3, 100), normal(100, 100, seed=1), torch.empty(3, 100)
    machine, recording = cpu.Machine(2, ""), _native.Recording()
    with pytest.raises(ValueError, match="once it has ended"):
        recording.run()
    recording.begin()
    machine.linear(x, _native.Matrix(weight), y)
    with pytest.raises(ValueError, match="once it has ended"):
        recording.run()
    recording.end()
    del machine  # which the recording keeps
    kept = churn()
    y.zero_()
    recording.run()
    assert torch.allclose(y, x @ weight.T, atol=1e-4)
    with pytest.raises(ValueError, match="begin twice"):
        recording.begin()
    del kept


def test_a_recording_dropped_in_another_thread_records_no_more(machine):
    held = [_native.Recording()]
    held[0].begin()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    kept = churn()
    machine.gelu(normal(3, 8), torch.empty(3, 8))
    second = _native.Recording()
    second.begin()
    machine.gelu(normal(3, 8), torch.empty(3, 8))
    second.end()
    assert second.size == 1
    del kept


def test_the_checks_stay_without_assertions():
    """`python -O` strips assert statements; the pages of a negative window, zero heads and sines of
    a wrong type would be accesses to memory that is not there.
    """
    code = """
import torch
from dataclasses import replace
from ossia.ops import AttentionSpec, RopeTable
from ossia.ops.cpu import CPU
from ossia.ops.paged import LayerKind, PagedKV, PagePool
assert False, "is not checked"
kind = LayerKind(None, 2, 8)
pool = PagePool([kind], {kind: 2}, page_size=4, dtype=torch.float32)
table = torch.tensor([[0, 1]], dtype=torch.int32)
kv = PagedKV(pool, {kind: table}, torch.tensor([5]), torch.tensor([1])).layer(0)
q, k = torch.zeros(1, 4, 8), torch.zeros(1, 2, 8)
angles = torch.zeros(1, 4)
tries = [
    (q, k, k, AttentionSpec(-3), kv),
    (q[:, :3], k, k, AttentionSpec(), kv),
    (q, k, k, AttentionSpec(), kv, RopeTable(angles, angles.double())),
    (q, k, k[:, :1], AttentionSpec(), kv),
]
with torch.inference_mode():
    for arguments in tries:
        try:
            CPU.attention(*arguments)
        except ValueError:
            print("refused")
"""
    run = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["refused"] * 4, run.stderr
