"""Rows of an embedding, and the angles of rotary positions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ossia.config import RoPE, YaRN
from ossia.ops.rope import attention_factor, frequencies
from tests.ops.cpu.common import DTYPES, FEW, native, normal
from tests.ops.flat import reference

ROPES = (RoPE(10_000.0), RoPE(150_000.0, YaRN(32.0, 4096, truncate=False)))


@FEW
@given(
    count=st.integers(1, 40),
    hidden=st.integers(1, 70) | st.just(3000),  # the last by several threads
    shape=st.sampled_from([(), (1,), (50,), (3, 5), (0,)]),
    dtype=DTYPES,
    gap=st.integers(0, 3),
    added=st.booleans(),
)
def test_embed(form, count, hidden, shape, dtype, gap, added):
    table = normal(count, hidden + gap, dtype=dtype)[:, :hidden]
    ids = torch.randint(count, shape, generator=torch.Generator().manual_seed(1))
    residual = normal(*shape, hidden, seed=2, dtype=dtype) if added else None
    found = form(native.backend.embed, ids, table, residual=residual)
    expected = F.embedding(ids, table)
    assert torch.equal(found, expected if residual is None else residual + expected)


def test_ids_that_there_are_not_are_refused(form):
    table = normal(5, 6)
    for bad in (-1, 5, 1 << 62, -(1 << 63)):
        with pytest.raises(IndexError):
            form(native.backend.embed, torch.tensor([0, bad]), table)


def test_a_table_and_a_residual_that_do_not_fit_are_refused(form):
    ids, table, y = torch.tensor([1, 2]), normal(5, 6), torch.empty(2, 6)
    for machine in form.machines:
        for residual in (normal(2, 5), normal(3, 6), normal(1, 6), normal(2, 6).bfloat16()):
            with pytest.raises(ValueError, match="residual"):
                machine.embed(ids, table, y, residual)
        for wrong in (normal(5), normal(0, 6), table.T, table.double()):
            with pytest.raises(ValueError, match="table"):
                machine.embed(ids, wrong, y, None)


def places(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units of float32's last place."""
    near = exact.float().abs()
    unit = torch.nextafter(near, torch.tensor(torch.inf)) - near
    return float(((found.double() - exact).abs() / unit.double()).max())


@pytest.mark.parametrize("rope", ROPES, ids=["plain", "yarn"])
@pytest.mark.parametrize("most", [1, 100, 131_072, 1_000_000])
@pytest.mark.parametrize("head_dim", [2, 6, 64, 128])
def test_cosines_and_sines_are_exact_but_for_the_last_rounding(form, rope, most, head_dim):
    generator = torch.Generator().manual_seed(2)
    positions = torch.randint(most, (300,), generator=generator)
    steps = frequencies(rope, head_dim, torch.device("cpu"))
    angles = (positions[:, None].float() * steps).double()
    factor = attention_factor(rope)
    for which, exact in enumerate((angles.cos(), angles.sin())):
        found = form(
            lambda which=which: native.backend.rope_table(positions, rope, head_dim)[which]
        )
        assert found.dtype is torch.float32
        assert places(found, exact * factor) <= 0.51


def test_positions_of_rows_and_of_one_kind_alone_have_the_same_angles(form):
    rows = torch.arange(40).view(2, 20) * 977
    together = form(lambda: torch.stack(native.backend.rope_table(rows, ROPES[1], 64)))
    assert together.shape == (2, 2, 20, 32)
    alone = form(lambda: torch.stack(native.backend.rope_table(rows[1, 7:8], ROPES[1], 64)))
    assert torch.equal(alone[:, 0], together[:, 1, 7])


def test_what_the_kernels_do_not_read_the_definition_does():
    table, ids = normal(5, 6), torch.tensor([1, 3])
    assert torch.equal(native.backend.embed(ids.int(), table), table[ids])
    rows = normal(3, 2, 6, seed=1)
    assert torch.equal(native.backend.embed(ids, table, residual=rows), rows + table[ids])
    assert torch.equal(native.backend.embed(ids, table.half()), table.half()[ids])
    found = native.backend.rope_table(ids.int(), ROPES[0], 8)
    for mine, theirs in zip(found, reference.backend.rope_table(ids, ROPES[0], 8), strict=True):
        assert torch.equal(mine, theirs)
