"""Sampling finds the ids of the definition."""

import math
import random
from typing import Any

import pytest
import torch

from ossia.engine.request import SamplingParams
from ossia.engine.sampler import Batch
from ossia.ops import sampling
from ossia.ops.sampling import SamplingTable
from ossia.ops.triton import TRITON
from tests.ops.sampling_tables import random_logits, random_states, table_of


def on(device: torch.device, table: SamplingTable) -> SamplingTable:
    """A table on another device."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, sampling.Edits):
            return sampling.Edits(**{name: part.to(device) for name, part in vars(value).items()})
        return value

    moved: dict[str, Any] = {name: move(value) for name, value in vars(table).items()}
    return SamplingTable(**moved)


def check(device: torch.device, logits: torch.Tensor, table: SamplingTable) -> list[int]:
    """The ids, which are the definition's on the CPU."""
    before = logits.clone()
    found = TRITON.sample(logits.to(device), on(device, table)).tolist()
    assert found == sampling.sample(logits, table).tolist()
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    return found


@pytest.mark.parametrize("vocab", [1, 33, 300])
def test_the_ids_are_those_of_the_definition(device, vocab):
    draw = random.Random(vocab)
    rows = 10 if device.type == "cpu" else 200
    logits, states = random_logits(draw, rows, vocab), random_states(draw, rows, vocab)
    batch = Batch(states, vocab, torch.device("cpu"))
    batch.prepare(states)
    check(device, logits, batch.table)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [4096, 4097, 201_088])
def test_the_ids_are_those_of_the_definition_in_large_vocabularies(vocab):
    draw = random.Random(vocab)
    logits, states = random_logits(draw, 60, vocab), random_states(draw, 60, vocab)
    batch = Batch(states, vocab, torch.device("cpu"))
    for _ in range(3):
        batch.prepare(states)
        found = check(torch.device("cuda"), logits, batch.table)
        batch.record([max(token, 0) for token in found])


def test_rows_without_a_distribution_have_no_id(device):
    logits = torch.zeros(5, 300)
    logits[0, 299] = math.nan
    logits[1] = -math.inf
    logits[2, 3] = math.inf
    logits[3] = math.nan
    for params in (SamplingParams(temperature=0, seed=1), SamplingParams(seed=1, top_p=0.5)):
        found = check(device, logits, table_of([params] * 5, 300))
        assert found[:4] == [-1] * 4
        assert found[4] >= 0


def test_constraints_hide_what_is_not_a_number(device):
    logits = torch.zeros(2, 70)
    logits[:, 5], logits[:, 64] = math.nan, 3
    table = table_of([SamplingParams(temperature=0), SamplingParams(seed=1)], 70)
    bits = torch.full((2, 3), -1, dtype=torch.int32)
    bits[:, 0] &= ~(1 << 5)
    table = SamplingTable(**{**vars(table), "bits": bits})
    assert check(device, logits, table)[0] == 64


def test_uniforms_at_the_edges_of_an_id_choose_as_the_definition_does(device):
    # Weights of 3, 5 and 2 sixteenths of a power of two, thirteen times over.
    logits = torch.tensor([3.0, 0.0, 5.0, 2.0] * 13).log().expand(40, -1)
    table = table_of([SamplingParams()] * 40, 52)
    table.uniforms.copy_(torch.linspace(0, 1, 40, dtype=torch.float64)[:, None])
    assert len(set(check(device, logits, table))) > 20


def test_equal_logits_at_the_end_of_the_ranking(device):
    """The first ids of those equal to the last that is kept; zeros of both signs are equal."""
    logits = torch.full((6, 520), -1.0)
    logits[:, ::20] = 0.0
    logits[:, 40::40] = -0.0
    logits[:, 7] = 1.0
    params = [SamplingParams(top_k=k) for k in (1, 2, 20)]
    params += [SamplingParams(top_p=p) for p in (0.02, 0.06, 1 - 2**-53)]
    table = table_of(params, 520)
    table.uniforms.fill_(1 - 2**-53)  # the last that is kept
    assert check(device, logits, table)[:3] == [7, 7, 360]


def test_totals_that_no_float64_holds(device):
    # Weights near 2^40 of 20,000 ids, or as many as the interpreter does in time.
    vocab = 600 if device.type == "cpu" else 20_011
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(2)) * 0.01
    params = [SamplingParams(top_p=1 - 2**-53 if row % 2 else 1.0) for row in range(4)]
    table = table_of(params, vocab)
    table.uniforms.fill_(1 - 2**-53)
    check(device, logits, table)


def test_limits_that_fall_close_together(device):
    logits = torch.linspace(0, -20, 500).expand(8, -1)
    params = [
        SamplingParams(
            seed=row, top_p=0.5, min_p=2 ** (-0.9 - row / 20), top_k=17 + row // 2 if row % 2 else 0
        )
        for row in range(8)
    ]
    table = table_of(params, 500)
    table.uniforms.fill_(1 - 2**-53)  # the last that is kept
    assert len(set(check(device, logits, table))) > 2


def test_logits_of_any_kind_and_layout(device):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    table = table_of([SamplingParams(seed=i) for i in range(3)], 50)
    for other in (
        logits.bfloat16(),
        logits.half(),
        logits.T.contiguous().T,
        logits[:1].expand(3, -1),
    ):
        check(device, other, table)
    assert TRITON.sample(logits[:0].to(device), on(device, table_of([], 50))).tolist() == []
