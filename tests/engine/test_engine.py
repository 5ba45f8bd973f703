"""The engine on a fake decoder: whatever is batched, chunked, waiting or aborted, each request gets
the tokens it would get alone, and its pages come back."""

import random
from typing import Any

import pytest
import torch

from ossia.engine import (
    ConstraintError,
    Engine,
    Failure,
    LogitsError,
    Request,
    SamplingParams,
    TokenOutput,
    capacity,
)
from ossia.engine.capacity import plan_pages
from ossia.engine.kv import CacheLimits
from ossia.errors import OssiaError
from ossia.ops.paged import LayerKind, position_bytes
from ossia.options import EngineOptions
from tests.engine.constraints import Allows
from tests.engine.engines import engine as build
from tests.engine.engines import step
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation
from tests.engine.invariants import assert_all_free, check


def greedy(prompt, max_tokens=None, **rest):
    return Request(prompt, SamplingParams(temperature=0, max_tokens=max_tokens, **rest))


def sized(decoder: Any, **options: Any) -> Engine:
    return Engine(decoder, EngineOptions(**options))


def prompts(*lengths):
    return [[(7 * i + length) % VOCAB for i in range(length)] for length in lengths]


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("prefill_chunk", [1, 3, 64])
@pytest.mark.parametrize(
    ("max_batch", "positions", "buckets"),
    [(1, 60, ()), (3, 60, ()), (8, None, ()), (3, 60, (1, 2, 4)), (8, None, (2, 5))],
)
def test_each_request_gets_the_tokens_it_would_get_alone(
    page_size, prefill_chunk, max_batch, positions, buckets
):
    engine = build(
        FakeDecoder((None, 5, 1, 40), buckets=buckets),
        positions,
        page_size=page_size,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
    )
    texts = prompts(1, 2, 31, 16, 4, 17)
    results = engine.generate(greedy(text, 9 + i) for i, text in enumerate(texts))
    for i, (text, result) in enumerate(zip(texts, results, strict=True)):
        assert result.tokens == continuation(text, 9 + i)
        assert result.finish_reason == "length"
        assert [o.finish_reason for o in result.outputs[:-1]] == [None] * (8 + i)
    assert_all_free(engine)


@pytest.mark.parametrize("buckets", [(), (3, 8)])
def test_random_arrivals_and_departures_change_no_token_and_lose_no_page(buckets):
    chance = random.Random(0)
    for windows in [(None,), (None, 3), (None, 9, 2)]:
        engine = build(
            FakeDecoder(windows, buckets=buckets),
            120,
            page_size=chance.choice([2, 3]),
            prefill_chunk=7,
            max_batch=4,
        )
        alive, outputs, finished, texts = {}, {}, 0, [[]]
        for _ in range(400):
            if chance.random() < 0.12:
                # A new text, or one that begins like an earlier one.
                before = chance.choice(texts[-3:])
                text = before[: chance.choice([0, 20, 40])]
                text += [chance.randrange(VOCAB) for _ in range(chance.randint(1, 30))]
                request = greedy(text, chance.randint(1, 50))
                texts.append(text)
                request_id = engine.add(request)
                alive[request_id], outputs[request_id] = request, []
            if alive and chance.random() < 0.05:
                request_id = chance.choice(list(alive))
                engine.abort(request_id)
                del alive[request_id]
            for output in step(engine):
                outputs[output.request_id].append(output.token)
                if output.finish_reason:
                    request = alive.pop(output.request_id)
                    expected = continuation(request.prompt, request.sampling.max_tokens)
                    expected = expected[: engine.max_length - len(request.prompt)]
                    assert outputs[output.request_id] == expected
                    finished += 1
                    texts.append([*request.prompt, *expected])
            check(engine)
        stats = engine.stats()
        assert finished > 10
        assert stats.preemptions > 3
        assert stats.evictions > 30
        assert stats.prefix_hits > 100
        for request_id in alive:
            engine.abort(request_id)
        assert_all_free(engine)


def test_first_come_first_served():
    engine = build(FakeDecoder(), 64, page_size=4)
    big, huge, small = prompts(30, 40, 2)
    first, second, third = (engine.add(greedy(text, 5)) for text in (big, huge, small))
    order = []
    while engine.has_work:
        order += [output.request_id for output in engine.step()]
    # The third would fit beside the first at once, but does not overtake the second.
    assert order[:5] == [first] * 5
    assert set(order[5:]) == {second, third}


def test_a_long_prompt_does_not_stall_those_who_decode():
    decoder = FakeDecoder()
    engine = build(decoder, prefill_chunk=8)
    short, long = prompts(3, 50)
    first = engine.add(greedy(short, 20))
    engine.step()
    second = engine.add(greedy(long, 2))
    seen = [{output.request_id for output in engine.step()} for _ in range(7)]
    assert seen == [{first}] * 6 + [{first, second}]
    assert decoder.steps[1:8] == [[1, 8]] * 6 + [[1, 2]]


def test_prompts_share_what_a_step_may_read():
    decoder = FakeDecoder()
    engine = build(decoder, prefill_chunk=8)
    engine.generate(greedy(text, 2) for text in prompts(10, 3, 5))
    # Each gets a token or more; the rest goes to the shortest.
    assert decoder.steps == [[1, 3, 4], [8, 1, 1], [1, 1], [1]]


def test_more_prompts_than_tokens_in_a_step_take_their_turns():
    decoder = FakeDecoder()
    engine = build(decoder, prefill_chunk=2)
    texts = prompts(4, 4, 4, 4)
    results = engine.generate(greedy(text, 3) for text in texts)
    assert [result.tokens for result in results] == [continuation(text, 3) for text in texts]
    # A prompt's last token counts as decoding, which takes none of the prompts' two tokens.
    assert decoder.steps[:4] == [[1, 1], [1, 1], [1, 1], [1, 1, 1, 1]]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    decoder = FakeDecoder(context_length=100_001)
    engine = build(decoder, prefill_chunk=512)
    long, short = prompts(100_000, 300)
    first = engine.add(greedy(long, 1))
    engine.step()
    assert decoder.steps == [[512]]
    second = engine.add(greedy(short, 3))
    assert [output.request_id for output in engine.step()] == [second]
    assert decoder.steps[1] == [212, 300]
    assert [output.request_id for output in engine.step()] == [second]
    assert decoder.steps[2] == [512, 1]
    # Many short ones leave the long one its share in every step.
    for seed in range(12):
        engine.add(greedy([seed, *short], 1))
    for _ in range(4):
        engine.step()
        assert decoder.steps[-1][0] >= 512 // (4 * 13)
        check(engine)
    engine.abort(first)


@pytest.mark.parametrize("prefill_chunk", [1, 8])
def test_a_sliding_layer_uses_a_bounded_number_of_pages(prefill_chunk):
    window, page_size = 6, 4
    engine = build(
        FakeDecoder((None, window)), page_size=page_size, prefill_chunk=prefill_chunk, max_batch=1
    )
    bound = -(-(window + prefill_chunk) // page_size) + 1
    engine.add(greedy(prompts(100)[0], 90))
    used = []
    while engine.has_work:
        engine.step()
        check(engine)
        full, sliding = engine.stats().pages.values()
        used.append(sliding.used)
        assert full.used >= sliding.used
    assert 0 < max(used) <= bound
    assert_all_free(engine)


def test_a_model_of_sliding_layers_alone_reads_to_the_context_in_a_few_pages():
    decoder = FakeDecoder((5,), context_length=100)
    # Its next token depends on the whole text, which it cannot see: only the pages are looked at.
    decoder.hidden_states = lambda tokens, context: tokens[:, None].float()
    engine = build(decoder, 2 * 5 * 4, page_size=4, prefill_chunk=8, max_batch=2)
    assert [counts.total for counts in engine.stats().pages.values()] == [2 * 5]
    results = engine.generate([greedy([1]), greedy([2] * 90)])
    assert [len(result.tokens) for result in results] == [99, 10]
    assert_all_free(engine)


def test_abort_frees_the_pages_at_once_and_disturbs_nobody():
    engine = build(FakeDecoder(), page_size=4, max_batch=2)
    texts = prompts(20, 21, 22)
    running, aborted, waiting = (engine.add(greedy(text, 12)) for text in texts)
    tokens = {running: [], aborted: [], waiting: []}
    for turn in range(30):
        for output in step(engine):
            tokens[output.request_id].append(output.token)
        if turn == 3:
            engine.abort(aborted)
    assert tokens[running] == continuation(texts[0], 12)
    assert tokens[aborted] == continuation(texts[1], 4)
    assert tokens[waiting] == continuation(texts[2], 12)
    queued = engine.add(greedy([1], 1))
    for request_id in (queued, queued, running, 12345):  # waiting, gone, finished, never there
        engine.abort(request_id)
    assert_all_free(engine)


def test_a_stop_id_ends_a_request_and_is_delivered():
    (text,) = prompts(5)
    expected = continuation(text, 10)
    stop = expected[3]
    (result,) = build(FakeDecoder()).generate([greedy(text, 10, stop_ids=frozenset({stop}))])
    assert result.tokens == expected[: expected.index(stop) + 1]
    assert result.finish_reason == "stop"
    # A stop id in the prompt ends nothing.
    (result,) = build(FakeDecoder()).generate([greedy([stop], 3, stop_ids=frozenset({stop}))])
    assert len(result.tokens) == 3 or result.tokens[-1] == stop


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_the_context_ends_a_request(max_tokens):
    engine = build(FakeDecoder(context_length=40), page_size=16)
    texts = prompts(39, 1, 25)
    results = engine.generate(greedy(text, max_tokens) for text in texts)
    assert [len(result.tokens) for result in results] == [1, 39, 15]
    assert {result.finish_reason for result in results} == {"length"}


def test_the_cache_ends_a_request_that_has_it_to_itself():
    engine = build(FakeDecoder(), 30, page_size=4)
    (text,) = prompts(20)
    assert engine.max_length == 33
    for max_tokens in (13, 14, 1000, None):
        (result,) = engine.generate([greedy(text, max_tokens)])
        assert result.tokens == continuation(text, 13)  # the last is never stored
        assert result.finish_reason == "length"
    assert len(engine.generate([greedy(prompts(32)[0])])[0].tokens) == 1
    with pytest.raises(OssiaError, match=r"33 tokens, .* the cache holds 32: .* kv_memory"):
        engine.add(greedy(prompts(33)[0], 1))
    assert_all_free(engine)


def test_the_youngest_gives_way_and_comes_back_without_being_computed_twice():
    decoder = FakeDecoder()
    engine = build(decoder, 32, page_size=4, max_batch=2)
    texts = prompts(8, 9)
    old, young = (engine.add(greedy(text, 20)) for text in texts)
    tokens = {old: [], young: []}
    order = []
    while engine.has_work:
        for output in step(engine):
            tokens[output.request_id].append(output.token)
            order.append(output.request_id)
        check(engine)
    assert tokens == {old: continuation(texts[0], 20), young: continuation(texts[1], 20)}
    assert engine.stats().preemptions == 1
    assert order[-6:] == [young] * 6  # it came back when the older had left
    # Both had read 16 positions when the older needed a fifth page. It came to need seven of the
    # eight, so the younger lost three of its four.
    assert sum(map(sum, decoder.steps)) == 8 + 19 + 9 + 19 + 12
    assert_all_free(engine)


def test_a_preempted_request_keeps_its_place_and_its_random_numbers():
    sampling = SamplingParams(seed=3, max_tokens=40, repetition_penalty=1.3)
    requests = [Request(text, sampling) for text in prompts(5, 6, 7, 8)]
    calm, tight = build(FakeDecoder(), page_size=4), build(FakeDecoder(), 60, page_size=4)
    expected = [result.tokens for result in calm.generate(requests)]
    assert [result.tokens for result in tight.generate(requests)] == expected
    assert calm.stats().preemptions == 0
    assert tight.stats().preemptions >= 3


def test_sixteen_requests_without_max_tokens_run_together_in_2_gb():
    decoder = FakeDecoder((None, 128), context_length=131_072)
    # gpt-oss-20b: 12 layers of each kind, 8 heads of 64 in bfloat16.
    kinds = [LayerKind(window, 8, 64) for window in (128, None)] * 12
    limits = CacheLimits(16, 512, 16, 131_072)
    num_pages = plan_pages(kinds, 2 * 10**9, limits, torch.bfloat16)
    page_bytes = 16 * position_bytes(kinds[0], torch.bfloat16) * 12
    assert 1.99e9 < page_bytes * sum(num_pages.values()) <= 2e9
    full, sliding = num_pages[kinds[1]], num_pages[kinds[0]]
    assert full > 4 * sliding
    page = 16 * position_bytes(decoder.layer_kinds[0], torch.float32)
    engine = sized(decoder, kv_memory=(full + sliding) * page, max_batch=16)
    counts = engine.stats().pages.values()
    assert [count.total + 1 for count in counts] == [full, sliding]
    for seed in range(16):
        engine.add(greedy([seed, *prompts(200)[0]]))
    for _ in range(20):
        outputs = step(engine)
    assert len(outputs) == 16
    assert engine.stats().running == 16
    check(engine)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([1, 2, VOCAB], f"id {VOCAB} at position 2 .* vocabulary of {VOCAB}"),
        ([1, -1], "id -1 at position 1 "),
        ([1, 2.0], r"position 1 is 2\.0, not an id"),
        ([True], "position 0 is True, not an id"),
        ([1] * 200, "200 tokens.*context of 200"),
        ([1] * 201, "201 tokens.*context of 200"),
    ],
)
def test_bad_prompts_are_refused(prompt, message):
    engine = build(FakeDecoder())
    with pytest.raises(OssiaError, match=message):
        engine.add(Request(prompt))
    assert_all_free(engine)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": "1"}, "temperature must be a finite number, not '1'"),
        ({"top_k": -2}, "top_k must be at least -1"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be between 0 and 1"),
        ({"min_p": 2}, "min_p must be between 0 and 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between"),
        ({"presence_penalty": 2.1}, "presence_penalty must be between -2 and 2"),
        ({"frequency_penalty": -3}, "frequency_penalty must be between -2 and 2"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"seed": 2**64}, "seed must be between"),
        ({"logprobs": -1}, "logprobs must be at least 0"),
        ({"logprobs": VOCAB + 1}, f"logprobs asks for {VOCAB + 1} .* vocabulary of {VOCAB}"),
        ({"logit_bias": {VOCAB: 1.0}}, f"logit_bias names id {VOCAB}.* vocabulary of {VOCAB}"),
        ({"logit_bias": {-1: 1.0}}, "an id of logit_bias must be at least 0, not -1"),
        ({"logit_bias": {3: 101}}, "logit_bias of id 3 must be between -100 and 100"),
        ({"stop_ids": frozenset({"a"})}, "an id of stop_ids must be an integer"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
    ],
)
def test_bad_sampling_values_are_refused(sampling, message):
    with pytest.raises(OssiaError, match=message):
        build(FakeDecoder()).add(Request([1], SamplingParams(**sampling)))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (100, "holds no text: at least"),
        ("20B", "holds no text: at least"),
        ("1000000 GiB", "more than the .* of memory that is free on cpu"),
    ],
)
def test_bad_memory_sizes_are_refused(size, message):
    with pytest.raises(OssiaError, match=message):
        sized(FakeDecoder(), kv_memory=size)


def test_logits_that_are_not_numbers_fail_their_request_and_spare_the_others():
    decoder = FakeDecoder()
    engine = build(decoder, page_size=2)
    decoder.broken_token = 13
    healthy = engine.add(Request([1, 2], SamplingParams(seed=5, max_tokens=6)))
    broken = engine.add(greedy([12, 13], 6))
    (failure,) = engine.step()
    assert isinstance(failure, Failure)
    assert failure.request_id == broken
    assert isinstance(failure.error, LogitsError)
    check(engine)
    outputs = []
    while engine.has_work:
        outputs += step(engine)
    assert {output.request_id for output in outputs} == {healthy}
    # What it computed is not kept for others.
    decoder.broken_token = None
    before = engine.stats().prefix_hits
    assert engine.generate([greedy([12, 13, 14], 3)])[0].tokens == continuation([12, 13, 14], 3)
    assert engine.stats().prefix_hits == before
    (alone,) = engine.generate([Request([1, 2], SamplingParams(seed=5, max_tokens=6))])
    assert [output.token for output in outputs] == alone.tokens


def test_a_constraint_steers_its_request_alone():
    engine = build(FakeDecoder())
    free = greedy([1, 2], 6)
    # The decoder's likeliest ids are the ones nearest to its choice.
    bound = Request([1, 2], free.sampling, lambda: Allows([3], [90, 4], [5, 60, 95]))
    outputs = engine.generate([free, bound, free])
    assert outputs[0].tokens == outputs[2].tokens == continuation([1, 2], 6)
    expected = []
    for allowed in [[3], [90, 4], *[[5, 60, 95]] * 4]:
        (wanted,) = continuation([1, 2, *expected], 1)
        expected.append(min(allowed, key=lambda token: abs(token - wanted)))
    assert outputs[1].tokens == expected


def test_a_constraint_that_allows_nothing_fails_its_request_by_name():
    engine = build(FakeDecoder())
    healthy = engine.add(Request([1, 2], SamplingParams(seed=5, max_tokens=6)))
    stuck = engine.add(Request([1, 2], SamplingParams(seed=5), lambda: Allows([3], [])))
    outputs = step(engine)
    (failure,) = engine.step()
    assert isinstance(failure, Failure)
    assert failure.request_id == stuck
    assert isinstance(failure.error, ConstraintError)
    while engine.has_work:
        outputs += step(engine)
    (alone,) = engine.generate([Request([1, 2], SamplingParams(seed=5, max_tokens=6))])
    assert [o.token for o in outputs if o.request_id == healthy] == alone.tokens


@pytest.mark.parametrize("buckets", [(), (1, 2, 4)])
def test_a_request_that_makes_the_pass_raise_fails_alone(buckets):
    decoder = FakeDecoder(buckets=buckets)
    engine = build(decoder, page_size=2)
    healthy = [engine.add(greedy([1, 2], 6)), engine.add(greedy([1, 2, 3, 4, 5], 6))]
    outputs = step(engine)
    decoder.fatal_token = continuation([7, 8, 9], 2)[-1]
    assert decoder.fatal_token not in [1, 2, 3, 4, 5, 7, 8, 9]
    broken = engine.add(greedy([7, 8, 9], 6))
    failures = []
    while engine.has_work:
        made = engine.step()
        check(engine)
        failures += [output for output in made if isinstance(output, Failure)]
        outputs += [output for output in made if isinstance(output, TokenOutput)]
    (failure,) = failures
    assert failure.request_id == broken
    assert isinstance(failure.error, ZeroDivisionError)
    for id, prompt in zip(healthy, ([1, 2], [1, 2, 3, 4, 5]), strict=True):
        tokens = [output.token for output in outputs if output.request_id == id]
        assert tokens == continuation(prompt, 6)
    assert_all_free(engine)


def test_an_exception_that_each_request_meets_fails_them_all_and_the_engine_lives_on():
    decoder = FakeDecoder()
    engine = build(decoder, max_batch=2, page_size=4)
    texts = prompts(9, 10, 11)
    first, second, third = (engine.add(greedy(text, 5)) for text in texts)
    engine.step()
    decoder.error = RuntimeError("out of memory")
    failures = engine.step()
    assert failures == [Failure(first, decoder.error), Failure(second, decoder.error)]
    assert engine.stats().running == 0
    check(engine)
    decoder.error = None
    outputs = []
    while engine.has_work:
        outputs += step(engine)
    assert [output.token for output in outputs] == continuation(texts[2], 5)
    assert {output.request_id for output in outputs} == {third}
    assert_all_free(engine)
    decoder.error = KeyboardInterrupt()
    engine.add(greedy(texts[0], 5))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    decoder.error = None  # nothing was recorded: the step can be run again
    assert [output.token for output in step(engine)] == continuation(texts[0], 1)


def test_generate_raises_the_error_of_a_request_and_drops_the_others():
    decoder = FakeDecoder()
    engine = build(decoder)
    decoder.broken_token = 13
    with pytest.raises(LogitsError):
        engine.generate([greedy([1], 3), greedy([13], 3)])
    assert_all_free(engine)


def test_generate_leaves_nothing_behind_when_it_fails():
    engine = build(FakeDecoder())
    with pytest.raises(OssiaError, match="empty"):
        engine.generate([greedy([1], 3), greedy([], 3)])
    assert_all_free(engine)


def test_generate_refuses_to_swallow_the_outputs_of_others():
    engine = build(FakeDecoder())
    engine.add(greedy([1], 3))
    with pytest.raises(RuntimeError, match="idle engine"):
        engine.generate([greedy([2], 3)])


def test_an_idle_step_does_nothing():
    assert build(FakeDecoder()).step() == []
    assert build(FakeDecoder()).generate([]) == []


def test_memory_that_the_system_does_not_give_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda device: 1 << 60)
    decoder = FakeDecoder((None,), context_length=10**9)
    with pytest.raises(OssiaError, match=r"no .* GB for keys and values on cpu: lower kv_memory"):
        sized(decoder, kv_memory=1 << 55, max_batch=2**16)


def test_by_default_the_cache_takes_half_of_what_the_weights_leave(monkeypatch):
    decoder = FakeDecoder((None,), context_length=10**6)
    page = 16 * position_bytes(decoder.layer_kinds[0], torch.float32)
    monkeypatch.setattr(decoder, "parameters", lambda: iter([torch.empty(1000)]))
    for free, budget in [(84_000, 40_000), (8_000, 2_000), (4_160, 260)]:
        monkeypatch.setattr(capacity, "free_memory", lambda device, free=free: free)
        (counts,) = sized(decoder).stats().pages.values()
        assert (counts.total + 1) * page <= budget < (counts.total + 2) * page
    monkeypatch.undo()
    # And never more than two whole contexts for each request that can run.
    (counts,) = sized(FakeDecoder((None,), context_length=100)).stats().pages.values()
    assert counts.total == 2 * 16 * 7
