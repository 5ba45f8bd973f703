"""Sampling against formulas in float64 written the slow, obvious way."""

import math
from dataclasses import replace

import pytest
import torch

from ossia.engine import ConstraintError, LogitsError, SamplingParams
from ossia.engine.sampler import SPARE, Batch, Sampler
from ossia.engine.sampler_state import RandomStream, SamplerState, split_mix
from ossia.ops import REFERENCE, sampling
from ossia.ops.sampling import PART, adjust
from tests.engine.constraints import Allows


def sample(logits, states):
    return Sampler(REFERENCE).sample(logits, states)


def adjusted(logits, states):
    return adjust(logits, Batch(states, logits.shape[-1], logits.device).table)


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
    for state in states:
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
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    monkeypatch.setattr(sampling, "WIDEN", 2)
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
    for token in output:
        state.record(token)
    probabilities = adjusted(logits[None], [state])[0].double().softmax(-1)
    torch.testing.assert_close(
        probabilities,
        torch.tensor(reference(logits, params, prompt, output), dtype=torch.float64),
        rtol=1e-5,
        atol=1e-9,
    )


def test_presence_and_frequency_look_at_the_output_alone():
    state = SamplerState(0, SamplingParams(presence_penalty=2.0, frequency_penalty=1.0), [1, 1])
    assert adjusted(torch.zeros(1, 3), [state]).tolist() == [[0.0, 0.0, 0.0]]
    state.record(2)
    assert adjusted(torch.zeros(1, 3), [state]).tolist() == [[0.0, 0.0, -3.0]]


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
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    monkeypatch.setattr(sampling, "WIDEN", 2)
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
    for params in (
        SamplingParams(),
        SamplingParams(top_k=10),
        SamplingParams(top_p=0.999),
        SamplingParams(min_p=0.0001),
    ):
        states = [SamplerState(i, replace(params, seed=i), []) for i in range(200)]
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


def test_random_numbers_are_those_of_splitmix64():
    # The outputs that https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64 asks for.
    assert [split_mix(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_random_numbers_are_uniform_along_a_stream_and_across_seeds():
    for numbers in (
        [RandomStream(7).uniform(index) for index in range(20_000)],
        [RandomStream(seed).uniform(0) for seed in range(-10_000, 10_000)],
        [RandomStream(seed).uniform(3) for seed in range(20_000)],
    ):
        assert all(0.0 <= number < 1.0 for number in numbers)
        counts = torch.histc(torch.tensor(numbers), 100, 0, 1).tolist()
        assert_fits([int(count) for count in counts], [0.01] * 100)
        pairs = torch.tensor(numbers).view(-1, 2)
        assert abs(torch.corrcoef(pairs.T)[0, 1]) < 0.04  # four standard deviations


def test_penalties_follow_the_output_through_many_steps_and_batches():
    vocab, steps = 1500, SPARE + 60  # more new ids than the table has slots for
    all_logits = torch.randn(steps, vocab, generator=torch.Generator().manual_seed(8)) * 0.1
    params = {"repetition_penalty": 1.5, "frequency_penalty": 0.3, "logit_bias": {7: 1, 9: -2.5}}
    params = SamplingParams(temperature=1.3, seed=5, **params)
    state, other = SamplerState(0, params, [3, 4, 4]), SamplerState(1, SamplingParams(seed=1), [0])
    sampler, output = Sampler(REFERENCE), []
    for step, logits in enumerate(all_logits):
        if step % 50 == 0:
            table = Batch([state], vocab, logits.device).table
            expected = reference(logits, params, [3, 4, 4], output)
            found = (adjust(logits[None], table)[0].double() / 1.3).softmax(-1)
            assert found.tolist() == pytest.approx(expected, rel=1e-5)
        batch = [state, other] if step % 7 < 4 else [other, state]
        samples = sampler.sample(logits.expand(2, -1), batch)
        output.append(samples[batch.index(state)].token)
    assert len(set(output)) > SPARE

    alone = SamplerState(2, params, [3, 4, 4])
    assert [Sampler(REFERENCE).sample(x[None], [alone])[0].token for x in all_logits] == output


@pytest.mark.parametrize("vocab", [64, 75, 1000])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_constraint_leaves_the_ids_it_allows_to_the_request_that_has_it(vocab, params):
    logits = torch.randn(2, vocab, generator=torch.Generator().manual_seed(9))
    allowed = [{0, 31, 32, 63}, {vocab - 1}, {5, 6, vocab - 2}]
    drawn = [set(), set(), set()]
    for seed in range(60):
        sampling = SamplingParams(seed=seed, **params)
        free, alone = SamplerState(0, sampling, [0]), SamplerState(1, sampling, [0])
        bound = SamplerState(2, sampling, [0], constraint := Allows(*allowed))
        together, apart, output = Sampler(REFERENCE), Sampler(REFERENCE), []
        for step in range(3):
            other, chosen = together.sample(logits, [free, bound])
            assert other == apart.sample(logits[:1], [alone])[0]
            assert constraint.accepted == output
            output.append(chosen.token)
            drawn[step].add(chosen.token)
    for ids, possible in zip(drawn, allowed, strict=True):
        assert ids <= possible
    assert params.get("temperature") == 0 or len(drawn[0]) > 1


def test_a_constrained_request_draws_from_the_distribution_over_what_is_allowed():
    logits = torch.randn(40, generator=torch.Generator().manual_seed(10))
    allowed = [1, 2, 30, 31, 32, 39]
    states = [
        SamplerState(seed, SamplingParams(seed=seed), [0], Allows(allowed)) for seed in range(2000)
    ]
    tokens = [chosen.token for chosen in sample(logits.expand(2000, -1), states)]
    inside = torch.full((40,), -math.inf)
    inside[allowed] = logits[allowed]
    expected = reference(inside, SamplingParams())
    assert_fits(torch.bincount(torch.tensor(tokens), minlength=40).tolist(), expected)


def test_a_constraint_that_allows_no_id_is_an_error_of_its_request():
    logits = torch.zeros(3, 40)
    logits[:, 7] = -math.inf
    for allowed in ([], [7], [40, 63]):  # none, one without probability, none of the vocabulary
        states = [SamplerState(i + 70, SamplingParams(seed=i), [0]) for i in range(3)]
        states[1].constraint = Allows(allowed)
        sampler = Sampler(REFERENCE)
        with pytest.raises(ConstraintError, match="constraint of request 71 allows no id") as error:
            sampler.sample(logits, states)
        assert error.value.request_id == 71
        assert [state.drawn for state in states] == [0, 0, 0]  # the others draw the same again


@pytest.mark.parametrize("method", ["mask", "accept"])
def test_a_constraint_that_fails_is_an_error_of_its_request(monkeypatch, method):
    def broken(self, _):
        raise KeyError("state 7")

    states = [SamplerState(i + 70, SamplingParams(seed=i), [0]) for i in range(3)]
    states[1].constraint = Allows([1])
    sampler, logits = Sampler(REFERENCE), torch.zeros(3, 40)
    sampler.sample(logits, states)
    monkeypatch.setattr(Allows, method, broken)
    with pytest.raises(ConstraintError, match="request 71 failed with KeyError: 'state 7'"):
        sampler.sample(logits, states)
    assert [state.drawn for state in states] == [1, 1, 1]


def test_logits_that_are_not_numbers_are_no_fault_of_the_constraint():
    logits = torch.zeros(1, 40)
    logits[0, 3] = math.nan
    state = SamplerState(5, SamplingParams(), [0], Allows([3, 4]))
    with pytest.raises(LogitsError, match="request 5"):
        sample(logits, [state])


def test_whole_numbers_are_as_good_as_fractions():
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(11))
    whole = SamplingParams(
        temperature=1, top_p=1, min_p=0, repetition_penalty=2, presence_penalty=1,
        frequency_penalty=-1, logit_bias={5: 3, 6: -100}, seed=1,
    )  # fmt: skip
    fraction = SamplingParams(
        temperature=1.0, top_p=1.0, min_p=0.0, repetition_penalty=2.0, presence_penalty=1.0,
        frequency_penalty=-1.0, logit_bias={5: 3.0, 6: -100.0}, seed=1,
    )  # fmt: skip
    found = [
        [sample(logits, [SamplerState(0, p, [2]), SamplerState(1, p, [3])]) for _ in range(5)]
        for p in (whole, fraction)
    ]
    assert found[0] == found[1]
