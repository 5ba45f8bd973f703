"""Sampling against formulas in float64 written the slow, obvious way."""

import math

import pytest
import torch

from ossia.engine import LogitsError, SamplingParams
from ossia.engine import sampler as sampler_module
from ossia.engine.sampler import PART, SamplerState, sample


def reference(logits, params, prompt=(), output=()):
    """The distribution over ids, one id at a time in Python floats."""
    logits = [float(x) for x in logits]
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in {*prompt, *output}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(output):
        logits[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    largest = max(logits)
    weights = [math.exp((x - largest) / params.temperature) for x in logits]
    ranking = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    if params.top_k:
        ranking = ranking[: params.top_k]
    mass, total, kept = 0.0, sum(weights[i] for i in ranking), []
    for token in ranking:
        if kept and mass >= params.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    kept = [i for i in kept if weights[i] >= params.min_p]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


def draw(logits, params, draws, prompt=(), output=()):
    """How often each id is drawn, many rows at a time, each with a seed of its own."""
    states = []
    for seed in range(draws):
        params_of_row = SamplingParams(**{**vars(params), "seed": seed})
        states.append(SamplerState(seed, params_of_row, prompt))
    if output:
        for state in states:
            state.adjust(logits)  # the history begins with the first adjustment
            for token in output:
                state.record(token)
    tokens = [s.token for s in sample(logits.expand(draws, -1), states)]
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)).tolist()


def assert_fits(counts, distribution):
    """Chi-square at a probability of error near 1e-5 (and the seeds are fixed)."""
    draws, statistic, degrees = sum(counts), 0.0, -1
    for count, probability in zip(counts, distribution, strict=True):
        if probability == 0.0:
            assert count == 0
        elif probability * draws >= 5:
            statistic += (count - draws * probability) ** 2 / (draws * probability)
            degrees += 1
    assert degrees < 1 or statistic < degrees + 4.3 * math.sqrt(2 * degrees) + 12


CASES = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 1.5},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 10, "top_p": 0.6, "min_p": 0.05, "temperature": 2.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.5, "top_k": 12},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8, "presence_penalty": -1.0},
    {"logit_bias": {0: 4.0, 3: -100.0, 39: 2.5}},
    {"logit_bias": {5: 3.0}, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "top_p": 0.9},
]


@pytest.mark.parametrize("candidates", [2, 1024])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_follow_the_reference_distribution(monkeypatch, case, candidates):
    monkeypatch.setattr(sampler_module, "CANDIDATES", candidates)
    monkeypatch.setattr(sampler_module, "WIDEN", 2)
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 2
    prompt, output = [1, 5, 5, 17], [5, 2, 2, 2, 30]
    params = SamplingParams(**case)
    expected = reference(logits, params, prompt, output)
    assert_fits(draw(logits, params, 2000, prompt, output), expected)


@pytest.mark.parametrize("case", [c for c in CASES if "logit_bias" in c or "penalty" in str(c)])
def test_penalties_and_bias_match_the_reference_exactly(case):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(4)) * 3
    prompt, output = [0, 9, 9], [9, 8, 8]
    params = SamplingParams(**{**case, "top_k": 0, "top_p": 1.0})
    state = SamplerState(0, params, prompt)
    state.adjust(logits)
    for token in output:
        state.record(token)
    probabilities = state.adjust(logits).double().softmax(-1)
    torch.testing.assert_close(
        probabilities,
        torch.tensor(reference(logits, params, prompt, output), dtype=torch.float64),
        rtol=1e-5,
        atol=1e-9,
    )


def test_presence_and_frequency_look_at_the_output_alone():
    state = SamplerState(0, SamplingParams(presence_penalty=2.0, frequency_penalty=1.0), [1, 1])
    assert state.adjust(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    state.record(2)
    assert state.adjust(torch.zeros(3)).tolist() == [0.0, 0.0, -3.0]


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.25, 0.5, 0.125, 0.125]).log()
    assert draw(logits, SamplingParams(top_p=0.5), 50) == [0, 50, 0, 0]
    counts = draw(logits, SamplingParams(top_p=0.75), 200)
    assert min(counts[:2]) > 30
    assert counts[2:] == [0, 0]
    counts = draw(logits, SamplingParams(top_p=0.76), 200)
    assert counts[2] > 0
    assert counts[3] == 0  # of equals the lower id is the more likely


@pytest.mark.parametrize("candidates", [1, 3, 1024])
def test_equal_logits_are_ranked_by_id(monkeypatch, candidates):
    monkeypatch.setattr(sampler_module, "CANDIDATES", candidates)
    monkeypatch.setattr(sampler_module, "WIDEN", 2)
    counts = draw(torch.zeros(50), SamplingParams(top_k=4), 400)
    assert all(count > 50 for count in counts[:4])
    assert counts[4:] == [0] * 46
    counts = draw(torch.zeros(50), SamplingParams(top_p=0.1), 400)
    assert all(count > 40 for count in counts[:5])
    assert counts[5:] == [0] * 45


def test_temperature_zero_is_the_argmax():
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0))
    states = [SamplerState(i, SamplingParams(temperature=0, top_p=0.1), []) for i in range(20)]
    assert [s.token for s in sample(logits, states)] == logits.argmax(-1).tolist()


def test_a_tiny_temperature_does_not_overflow():
    logits = torch.tensor([[3e4, 3.1e4, -3e4]])
    for temperature in (1e-30, 1e-4, 1e-2):
        state = SamplerState(0, SamplingParams(temperature=temperature, top_p=0.9), [])
        assert sample(logits, [state])[0].token == 1


def test_ids_that_the_model_excludes_are_never_drawn():
    logits = torch.full((200, 30), -math.inf)
    logits[:, [4, 20]] = 0.0
    for params in ({}, {"top_k": 10}, {"top_p": 0.999}, {"min_p": 0.0001}):
        states = [SamplerState(i, SamplingParams(seed=i, **params), []) for i in range(200)]
        assert {s.token for s in sample(logits, states)} == {4, 20}


MIXED = [
    {"temperature": 0},
    {"seed": 1},
    {"seed": 2, "top_p": 0.9},
    {"seed": 3, "top_k": 5},
    {"seed": 4, "top_k": 700, "logprobs": 2},
    {"seed": 5, "min_p": 0.01, "frequency_penalty": 1.0},
    {"seed": 6, "temperature": 3.0, "top_p": 0.999},
    {"seed": 7, "logit_bias": {3: 5.0}, "repetition_penalty": 1.2},
]


def test_a_seed_gives_the_same_tokens_whatever_the_batch():
    # In bfloat16 many logits are equal: ties must not be broken by how the batch is computed.
    logits = torch.randn(10, 8, 5000, generator=torch.Generator().manual_seed(1))
    logits = (logits * 2).bfloat16()

    def run(rows):
        states = [SamplerState(row, SamplingParams(**MIXED[row]), [row]) for row in rows]
        steps = [[s.token for s in sample(step[rows], states)] for step in logits]
        return dict(zip(rows, zip(*steps, strict=True), strict=True))

    together = run(list(range(8)))
    assert run(list(range(7, -1, -1))) == together
    for row in range(8):
        assert run([row])[row] == together[row]


def test_seeds_differ_and_no_seed_differs_each_time():
    logits = torch.zeros(2, 10**6)
    a, b = sample(logits, [SamplerState(i, SamplingParams(seed=i), []) for i in (1, 2)])
    c, d = sample(logits, [SamplerState(i, SamplingParams(), []) for i in (1, 2)])
    assert len({a.token, b.token, c.token, d.token}) == 4


def test_logprobs_are_the_models_own_whatever_the_parameters():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    expected = logits.double().log_softmax(-1)
    params = SamplingParams(temperature=0.2, top_k=3, logit_bias={7: 100.0}, logprobs=4, seed=0)
    chosen, other = sample(
        logits, [SamplerState(0, params, [1]), SamplerState(1, SamplingParams(logprobs=0), [1])]
    )
    assert chosen.token == 7
    assert chosen.logprob == pytest.approx(expected[0, 7].item(), abs=1e-5)
    top = expected[0].topk(4)
    assert [token for token, _ in chosen.top_logprobs] == top.indices.tolist()
    assert [x for _, x in chosen.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-5)
    assert other.logprob == pytest.approx(expected[1, other.token].item(), abs=1e-5)
    assert other.top_logprobs == ()


def test_the_logits_are_left_as_they_were():
    logits = torch.randn(1, 20)
    before = logits.clone()
    params = SamplingParams(logit_bias={1: 5.0}, repetition_penalty=2.0, presence_penalty=1.0)
    sample(logits, [SamplerState(0, params, [3])])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 2}])
def test_logits_that_are_not_numbers_are_an_error(bad, params):
    logits = torch.zeros(3, 10)
    logits[1, 4] = bad
    states = [SamplerState(i + 70, SamplingParams(**params), []) for i in range(3)]
    with pytest.raises(LogitsError, match="request 71 are not finite"):
        sample(logits, states)


def test_an_empty_batch_samples_nothing():
    assert sample(torch.zeros(0, 10), []) == []


@pytest.mark.parametrize("vocab", [1, 5, PART - 1, PART, PART + 1, 3 * PART, 5 * PART + 77])
def test_greedy_takes_the_first_of_the_largest_wherever_it_stands(vocab):
    rows = torch.randint(0, vocab, (40,), generator=torch.Generator().manual_seed(vocab)).tolist()
    rows = [0, vocab - 1, *rows]
    logits = torch.zeros(len(rows), vocab)
    for row, place in enumerate(rows):
        logits[row, place] = 3.0
        logits[row, max(place, vocab // 2) :] = 3.0  # others as large come later
        logits[row, place + 1 : vocab // 2] = -math.inf
    states = [SamplerState(0, SamplingParams(temperature=0.0), [0]) for _ in rows]
    assert [chosen.token for chosen in sample(logits, states)] == logits.argmax(-1).tolist()
