"""Native sampling finds the ids of the definition, in every instruction set."""

import math
import random

import pytest
import torch

from ossia.engine.request import SamplingParams
from ossia.engine.sampler import Batch
from ossia.ops import sampling
from ossia.ops.sampling import Edits, SamplingTable
from tests.ops.cpu.common import cpu  # which skips where there are no native kernels
from tests.ops.sampling_tables import CPU, random_logits, random_states, table_of

_native = pytest.importorskip("ossia.ops._native")
NATIVE = cpu.CPU


@pytest.mark.parametrize("vocab", [1, 31, 33, 64, 200, 1000, 8192, 8193, 20_011])
def test_the_ids_are_those_of_the_definition(form, vocab):
    draw = random.Random(vocab)
    rows = 200 if vocab <= 1000 else 50
    logits, states = random_logits(draw, rows, vocab), random_states(draw, rows, vocab)
    before = logits.clone()
    batch = Batch(states, vocab, CPU)
    for _ in range(3):
        batch.prepare(states)
        found = form(NATIVE.sample, logits, batch.table)
        expected = sampling.sample(logits, batch.table)
        assert found.tolist() == expected.tolist()
        assert torch.equal(logits, before)
        batch.record([max(token, 0) for token in found.tolist()])


def test_rows_without_a_distribution_have_no_id(form):
    logits = torch.zeros(6, 9000)
    logits[0, 8999] = math.nan
    logits[1] = -math.inf
    logits[2, 3] = math.inf
    logits[3] = math.nan
    for params in (
        SamplingParams(temperature=0, seed=1),
        SamplingParams(seed=1),
        SamplingParams(top_k=3, seed=1),
        SamplingParams(top_p=0.5, seed=1),
        SamplingParams(min_p=0.5, seed=1),
    ):
        table = table_of([params] * 6, 9000)
        found = form(NATIVE.sample, logits, table).tolist()
        assert found == sampling.sample(logits, table).tolist()
        assert found[:4] == [-1] * 4


def test_uniforms_at_the_edges_of_an_id_choose_as_the_definition_does(form):
    # Weights of 3, 5 and 2 sixteenths of a power of two, thirteen times over.
    logits = torch.tensor([3.0, 0.0, 5.0, 2.0] * 13).log().expand(400, -1)
    table = table_of([SamplingParams(top_p=0.9)] * 400, 52)
    table.uniforms.copy_(torch.linspace(0, 1, 400, dtype=torch.float64)[:, None])
    assert torch.equal(form(NATIVE.sample, logits, table), sampling.sample(logits, table))


def test_totals_that_no_float64_holds(form):
    # 20,000 weights near 2^40: their sum is rounded where it is multiplied.
    logits = torch.randn(60, 20_011, generator=torch.Generator().manual_seed(2)) * 0.01
    params = [SamplingParams(top_p=1 - 2**-53 if row % 2 else 1.0) for row in range(60)]
    table = table_of(params, 20_011)
    table.uniforms.fill_(1 - 2**-53)
    assert torch.equal(form(NATIVE.sample, logits, table), sampling.sample(logits, table))


def test_limits_that_fall_close_together(form):
    logits = torch.linspace(0, -20, 3000).expand(400, -1)
    params = [
        SamplingParams(
            seed=row,
            top_p=0.5,
            min_p=2 ** (-0.9 - row / 1000),
            top_k=100 + row // 100 if row % 2 else 0,
        )
        for row in range(400)
    ]
    table = table_of(params, 3000)
    table.uniforms.fill_(1 - 2**-53)  # the last that is kept
    found = form(NATIVE.sample, logits, table)
    assert torch.equal(found, sampling.sample(logits, table))
    assert len(found.unique()) > 10


def test_logits_of_any_kind_and_layout(form):
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(1))
    table = table_of([SamplingParams(seed=i, top_p=0.9) for i in range(6)], 500)
    for other in (
        logits.bfloat16(),
        logits.half(),
        logits.T.contiguous().T,
        logits[:1].expand(6, -1),
    ):
        assert torch.equal(form(NATIVE.sample, other, table), sampling.sample(other, table))
    assert NATIVE.sample(logits[:0], table_of([], 500)).tolist() == []


@pytest.mark.parametrize("broken", ["rows", "ids", "lengths"])
def test_an_edit_of_what_is_not_there_is_an_error(form, broken):
    one = torch.ones(1, 1)
    whole = torch.ones(1, 1, dtype=torch.int64)
    parts = {"rows": whole[0], "lengths": whole, "ids": whole, "counts": whole}
    parts[broken] = parts[broken] * 5
    edits = Edits(biases=one, repetition=one, frequency=one, presence=one, **parts)
    table = table_of([SamplingParams()] * 3, 5)
    logits = torch.zeros(3, 5)
    with pytest.raises(IndexError):
        form(NATIVE.sample, logits, SamplingTable(**{**vars(table), "edits": edits}))
    assert (logits == 0).all()


def test_what_does_not_fit_together_is_refused(form):
    def column(dtype, rows=3, value=0):
        return torch.full((rows, 1), value, dtype=dtype)

    single, double, whole = torch.float32, torch.float64, torch.int64
    types = (single, whole, double, single, double)
    columns = [column(*both) for both in zip(types, [3] * 5, (0, 1, 1, 0, 0), strict=True)]
    logits, ids = torch.zeros(3, 70), torch.empty(3, dtype=whole)
    none, bits = _native.Edits(), torch.zeros(3, 3, dtype=torch.int32)

    def run(logits, columns, bits, edits, ids):
        form.machines[-1].sample(logits, _native.SamplingTable(*columns, bits, edits), ids)

    run(logits, columns, bits, none, ids)
    assert ids.tolist() == [-1] * 3
    for wrong in (
        (logits, [*columns[:2], column(single), *columns[3:]], bits, none, ids),
        (logits, [*columns[:4], column(double, 2)], bits, none, ids),
        (logits, columns, bits[:, :2].contiguous(), none, ids),  # 64 bits
        (logits, columns, bits.long(), none, ids),
        (logits[:2], columns, bits, none, ids),
        (logits.T.contiguous().T, columns, bits, none, ids),
        (logits, columns, bits, none, ids[:2]),
    ):
        with pytest.raises(ValueError, match="expected"):
            run(*wrong)
    slots = torch.zeros(1, 4, dtype=whole)
    edits = [slots[0, :1], slots[:, :1], slots, slots.float(), slots, *[torch.ones(1, 1)] * 3]
    _native.Edits(*edits)
    for place in range(len(edits)):
        with pytest.raises(ValueError, match="expected"):
            _native.Edits(*edits[:place], torch.zeros(2, 3), *edits[place + 1 :])
