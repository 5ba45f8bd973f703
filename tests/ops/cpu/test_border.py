"""The border of the native module: what its values hold, and that nothing wrong gets past it."""

import gc
import subprocess
import sys

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
        x.cfloat(),
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
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert run.stdout.split() == ["refused"] * 4, run.stderr
