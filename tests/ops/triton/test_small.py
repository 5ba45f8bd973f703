"""The small operations: the rotary table and activations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.config import ClampedSwiGLU, RoPE, SwiGLU, YaRN
from ossia.ops import REFERENCE
from ossia.ops.triton import TRITON
from tests.ops.triton.common import DTYPES, FEW, RESULT_ERROR, normal, relative_error, same_kinds

YARN = YaRN(32.0, 4096, truncate=False)


@pytest.mark.parametrize("rope", [RoPE(1e4), RoPE(150_000.0, YARN)], ids=["plain", "yarn"])
@pytest.mark.parametrize("head_dim", [2, 10, 64])
@pytest.mark.parametrize("shape", [(0,), (1,), (9,), (2, 5)])
def test_rope_table(device, rope, head_dim, shape):
    generator = torch.Generator().manual_seed(1)
    positions = torch.randint(0, 200_000, shape, generator=generator).to(device)
    found = TRITON.rope_table(positions, rope, head_dim)
    expected = REFERENCE.rope_table(positions, rope, head_dim)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is torch.float32
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) <= 1e-6


ACTIVATIONS = pytest.mark.parametrize("activation", [SwiGLU(), ClampedSwiGLU()], ids=str)


@ACTIVATIONS
@FEW
@given(shape=st.sampled_from([(0, 7), (1, 1), (3, 40), (2, 1100)]), dtype=DTYPES)
def test_gated(device, activation, shape, dtype):
    gate, up = (normal(*shape, seed=s, dtype=dtype, device=device) * 6 for s in (0, 1))
    found = TRITON.gated(gate, up, activation)
    assert found.dtype is dtype
    assert found.shape == shape
    expected = REFERENCE.gated(gate.double(), up.double(), activation)
    assert relative_error(found, expected) <= 2 * RESULT_ERROR[dtype]


@ACTIVATIONS
def test_numbers_at_the_edge(device, activation):
    edge = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 90.0, -90.0, 1e-40], device=device)
    gate, up = edge.repeat(7), edge.repeat_interleave(7)
    found, expected = (ops.gated(gate, up, activation) for ops in (TRITON, REFERENCE))
    assert same_kinds(found, expected)
