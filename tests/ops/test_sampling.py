"""The definition of sampling against arithmetic in whole numbers, and its parts one by one."""

import math
import random

import pytest
import torch

from ossia.engine.request import SamplingParams
from ossia.engine.sampler import Batch
from ossia.ops import sampling
from ossia.ops.sampling import Edits, SamplingTable, adjust, keep, pick, sample, unpack, weigh
from tests.ops.sampling_tables import CPU, random_logits, random_states, table_of


def test_weights_are_powers_of_two_in_steps_of_one():
    powers = torch.cat([torch.linspace(-45, 0, 100_001), torch.arange(-45, 1)])
    weights = weigh(powers)
    exact = torch.exp2(powers.double()) * 2**40
    assert weights.dtype == torch.int64
    assert ((weights - exact).abs() <= 0.5 + 2e-7 * exact).all()
    assert weigh(torch.tensor([0.0, -1.0, -40.0, -42.0, -1e30, -math.inf])).tolist() == [
        2**40, 2**39, 1, 0, 0, 0,
    ]  # fmt: skip


def test_the_pick_is_the_inverse_of_the_cumulative_distribution():
    weights = torch.tensor([3, 0, 5, 2, 0]).expand(11, -1)
    uniforms = torch.tensor([*(i / 10 for i in range(10)), 1 - 2**-53], dtype=torch.float64)
    assert pick(weights, uniforms[:, None]).tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 3]


def kept_by_rank(logits, weights, top_k, top_p):
    """What top-k and top-p keep, id by id."""
    ranking = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    total, mass, kept = sum(weights[i] for i in ranking), 0, []
    needed = math.ceil(top_p * total)
    for token in ranking:
        if top_p < 1 and mass >= needed:
            break
        kept.append(token)
        mass += weights[token]
    return sorted(kept)


@pytest.mark.parametrize("candidates", [2, 1024])
def test_what_is_kept_is_the_prefix_of_the_ranking(monkeypatch, candidates):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    monkeypatch.setattr(sampling, "WIDEN", 2)
    draw = random.Random(1)
    for vocab in (1, 2, 33, 150):
        logits = torch.randn(200, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
        logits[::2] = logits[::2].round()  # many are equal
        largest = logits.amax(-1, keepdim=True)
        params = [
            SamplingParams(
                top_k=draw.choice([0, 1, 2, 7, 40, 1000]), top_p=draw.choice([1e-9, 0.3, 0.9, 1.0])
            )
            for _ in range(200)
        ]
        table = table_of(params, vocab)
        weights = weigh((logits - largest) * table.scale)
        ranked = table.ranked
        found = keep(logits[ranked], largest[ranked], weights[ranked], slice(None), table)
        for row, kept in zip(ranked.tolist(), found, strict=True):
            top_k, top_p = params[row].top_k or vocab, params[row].top_p
            expected = kept_by_rank(logits[row].tolist(), weights[row].tolist(), top_k, top_p)
            # Ids of no weight make no difference.
            heavy = weights[row] > 0
            assert (kept & heavy).nonzero()[:, 0].tolist() == [i for i in expected if heavy[i]]


def test_min_p_counts_from_the_largest():
    logits = torch.tensor([[0.0, math.log(0.25), math.log(0.24), math.log(0.5)]]).expand(400, -1)
    params = [SamplingParams(min_p=0.25, seed=i) for i in range(400)]
    assert set(sample(logits, table_of(params, 4)).tolist()) == {0, 1, 3}
    params = [SamplingParams(min_p=1.0, seed=i) for i in range(400)]
    assert set(sample(logits, table_of(params, 4)).tolist()) == {0}


def test_bits_are_packed_from_the_lowest():
    bits = torch.tensor([[1 | 1 << 5, -(2**31)], [-1, 3]], dtype=torch.int32)
    found = unpack(bits, 50)
    assert found.shape == (2, 50)
    assert found[0].nonzero()[:, 0].tolist() == [0, 5]  # bit 63 is not in the vocabulary
    assert found[1].nonzero()[:, 0].tolist() == list(range(34))


def test_edits_touch_the_slots_in_use_and_nothing_else():
    column = torch.tensor([[2.0], [2.0]])
    edits = Edits(
        rows=torch.tensor([0, 2]),
        lengths=torch.tensor([[1], [3]]),
        ids=torch.tensor([[4, 0, 0], [0, 4, 2]]),
        biases=torch.tensor([[1.0, 9.0, 9.0], [0.0, -2.0, 0.5]]),
        counts=torch.tensor([[-1, 9, 9], [0, 1, 3]]),
        repetition=column,
        frequency=column / 8,
        presence=column / 2,
    )
    table = table_of([SamplingParams()] * 3, 5)
    table = SamplingTable(**{**vars(table), "edits": edits})
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]] * 3)
    expected = logits.clone()
    expected[0, 4] = 6.0  # bias alone
    expected[2, 0] = 0.5  # stands in the prompt
    expected[2, 4] = (5 - 2) / 2 - 0.25 - 1
    expected[2, 2] = 3.5 / 2 - 0.75 - 1
    assert torch.equal(adjust(logits, table), expected)


def test_rows_without_a_distribution_have_no_id():
    logits = torch.zeros(6, 2000)
    logits[0, 1999] = math.nan
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
        table = table_of([params] * 6, 2000)
        found = sample(logits, table)
        assert found[:4].tolist() == [-1] * 4
        assert (found[4:] >= 0).all()


def test_a_row_does_not_depend_on_its_batch():
    draw = random.Random(4)
    logits, states = random_logits(draw, 60, 700), random_states(draw, 60, 700)

    def ids(rows):
        chosen = [states[row] for row in rows]
        batch = Batch(chosen, 700, CPU)
        batch.prepare(chosen)
        return sample(logits[rows], batch.table).tolist()

    together = ids(list(range(60)))
    assert [ids([row])[0] for row in range(60)] == together
    shuffled = random.Random(5).sample(range(60), 60)
    assert ids(shuffled) == [together[row] for row in shuffled]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_samples_the_same_ids():
    draw = random.Random(6)
    for vocab in (1, 100, 5000, 201_088):
        logits, states = random_logits(draw, 64, vocab), random_states(draw, 64, vocab)
        found = []
        for device in (CPU, torch.device("cuda")):
            batch = Batch(states, vocab, device)
            batch.prepare(states)
            found.append(sample(logits.to(device), batch.table).tolist())
        assert found[0] == found[1]
