"""The engine on a fake decoder: whatever is batched, chunked, waiting or aborted, each request gets
the tokens it would get alone, and its pages come back."""

import random

import pytest

from ossia.engine import ConstraintError, Engine, LogitsError, Request, SamplingParams
from ossia.errors import OssiaError
from tests.engine.constraints import Allows
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation


def greedy(prompt, max_tokens=None, **rest):
    return Request(prompt, SamplingParams(temperature=0, max_tokens=max_tokens, **rest))


def prompts(*lengths):
    return [[(7 * i + length) % VOCAB for i in range(length)] for length in lengths]


def assert_all_free(engine):
    assert not engine.has_work
    for kind, pages in engine.pages.kinds.items():
        assert pages.unreserved == engine.pages.num_pages[kind]
        assert sorted(pages.free) == list(range(engine.pages.num_pages[kind]))
        assert (pages.table == -1).all()


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("prefill_chunk", [1, 3, 64])
@pytest.mark.parametrize(("max_batch", "max_tokens_kv"), [(1, 60), (3, 100), (8, None)])
def test_each_request_gets_the_tokens_it_would_get_alone(
    page_size, prefill_chunk, max_batch, max_tokens_kv
):
    engine = Engine(
        FakeDecoder((None, 5, 1, 40)),
        page_size=page_size,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
        max_tokens_kv=max_tokens_kv,
    )
    texts = prompts(1, 2, 31, 16, 4, 17)
    results = engine.generate(greedy(text, 9 + i) for i, text in enumerate(texts))
    for i, (text, result) in enumerate(zip(texts, results, strict=True)):
        assert result.tokens == continuation(text, 9 + i)
        assert result.finish_reason == "length"
        assert [o.finish_reason for o in result.outputs[:-1]] == [None] * (8 + i)
    assert_all_free(engine)


def test_random_arrivals_and_departures_change_no_token_and_lose_no_page():
    chance = random.Random(0)
    for windows in [(None,), (None, 3), (None, 9, 2)]:
        engine = Engine(
            FakeDecoder(windows),
            page_size=chance.choice([2, 3]),
            prefill_chunk=7,
            max_batch=4,
            max_tokens_kv=90,
        )
        alive, outputs, finished = {}, {}, 0
        for _ in range(150):
            if chance.random() < 0.25:
                text = [chance.randrange(VOCAB) for _ in range(chance.randint(1, 30))]
                request = greedy(text, chance.randint(1, 30))
                request_id = engine.add(request)
                alive[request_id], outputs[request_id] = request, []
            if alive and chance.random() < 0.05:
                request_id = chance.choice(list(alive))
                engine.abort(request_id)
                del alive[request_id]
            for output in engine.step():
                outputs[output.request_id].append(output.token)
                if output.finish_reason:
                    request = alive.pop(output.request_id)
                    expected = continuation(request.prompt, request.sampling.max_tokens)
                    assert outputs[output.request_id] == expected
                    finished += 1
        assert finished > 10
        for request_id in alive:
            engine.abort(request_id)
        assert_all_free(engine)


def test_first_come_first_served():
    engine = Engine(FakeDecoder(), page_size=4, max_tokens_kv=64)
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
    engine = Engine(decoder, prefill_chunk=8)
    short, long = prompts(3, 50)
    first = engine.add(greedy(short, 20))
    engine.step()
    second = engine.add(greedy(long, 2))
    seen = [{output.request_id for output in engine.step()} for _ in range(7)]
    assert seen == [{first}] * 6 + [{first, second}]
    assert decoder.steps[1:8] == [[1, 8]] * 6 + [[1, 2]]


def test_prompts_share_what_a_step_may_read():
    decoder = FakeDecoder()
    Engine(decoder, prefill_chunk=8).generate(greedy(text, 2) for text in prompts(10, 3, 5))
    assert decoder.steps == [[8], [2, 3, 3], [1, 1, 2], [1]]


@pytest.mark.parametrize("prefill_chunk", [1, 8])
def test_a_sliding_layer_holds_a_bounded_number_of_pages(prefill_chunk):
    window, page_size = 6, 4
    engine = Engine(
        FakeDecoder((None, window)), page_size=page_size, prefill_chunk=prefill_chunk, max_batch=1
    )
    full, sliding = engine.pages.kinds.values()
    bound = -(-(window + prefill_chunk) // page_size) + 1
    assert len(sliding.free) == bound
    engine.add(greedy(prompts(100)[0], 90))
    while engine.has_work:
        engine.step()
        assert (sliding.table >= 0).sum() <= bound
        if engine.has_work:
            assert (full.table >= 0).sum() >= (sliding.table >= 0).sum()
    assert_all_free(engine)


def test_a_model_of_sliding_layers_alone_reads_to_the_context_in_a_few_pages():
    decoder = FakeDecoder((5,), context_length=100)
    # Its next token depends on the whole text, which it cannot see: only the pages are looked at.
    decoder.hidden_states = lambda tokens, positions, kv: tokens[:, None].float()
    engine = Engine(decoder, page_size=4, prefill_chunk=8, max_batch=2)
    assert [len(pages.free) for pages in engine.pages.kinds.values()] == [2 * 5]
    results = engine.generate([greedy([1]), greedy([2] * 90)])
    assert [len(result.tokens) for result in results] == [99, 10]
    assert_all_free(engine)


def test_abort_frees_the_pages_at_once_and_disturbs_nobody():
    engine = Engine(FakeDecoder(), page_size=4, max_tokens_kv=72, max_batch=2)
    texts = prompts(20, 21, 22)
    running, aborted, waiting = (engine.add(greedy(text, 12)) for text in texts)
    tokens = {running: [], aborted: [], waiting: []}
    for step in range(30):
        for output in engine.step():
            tokens[output.request_id].append(output.token)
        if step == 3:
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
    (result,) = Engine(FakeDecoder()).generate([greedy(text, 10, stop_ids=frozenset({stop}))])
    assert result.tokens == expected[: expected.index(stop) + 1]
    assert result.finish_reason == "stop"
    # A stop id in the prompt ends nothing.
    (result,) = Engine(FakeDecoder()).generate([greedy([stop], 3, stop_ids=frozenset({stop}))])
    assert len(result.tokens) == 3 or result.tokens[-1] == stop


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_the_context_ends_a_request(max_tokens):
    engine = Engine(FakeDecoder(context_length=40), page_size=16)
    texts = prompts(39, 1, 25)
    results = engine.generate(greedy(text, max_tokens) for text in texts)
    assert [len(result.tokens) for result in results] == [1, 39, 15]
    assert {result.finish_reason for result in results} == {"length"}


def test_a_request_that_can_never_fit_is_refused():
    engine = Engine(FakeDecoder(), page_size=4, max_tokens_kv=30)
    (text,) = prompts(20)
    assert len(engine.generate([greedy(text, 13)])[0].tokens) == 13  # the last is never stored
    with pytest.raises(
        OssiaError, match=r"20 ids and up to 14 new ones .* 32 positions.*max_tokens"
    ):
        engine.add(greedy(text, 14))
    with pytest.raises(OssiaError, match=r"33 ids and up to 1 new ones .* 32 positions"):
        engine.add(greedy(prompts(33)[0]))
    # Without max_tokens the cache's end is the context's end.
    assert len(engine.generate([greedy(text)])[0].tokens) == 13
    assert_all_free(engine)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([1, 2, VOCAB], f"id {VOCAB} at position 2 .* vocabulary of {VOCAB}"),
        ([1, -1], "id -1 at position 1 "),
        ([1, 2.0], r"position 1 is 2\.0, not an id"),
        ([True], "position 0 is True, not an id"),
        ([1] * 200, "200 ids.*context of 200"),
        ([1] * 201, "201 ids.*context of 200"),
    ],
)
def test_bad_prompts_are_refused(prompt, message):
    engine = Engine(FakeDecoder())
    with pytest.raises(OssiaError, match=message):
        engine.add(Request(prompt))
    assert_all_free(engine)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": "1"}, "temperature must be a finite number, not '1'"),
        ({"top_k": -1}, "top_k must be at least 0"),
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
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_bad_sampling_values_are_refused(sampling, message):
    with pytest.raises(OssiaError, match=message):
        Engine(FakeDecoder()).add(Request([1], SamplingParams(**sampling)))


@pytest.mark.parametrize("name", ["page_size", "prefill_chunk", "max_batch", "max_tokens_kv"])
def test_bad_engine_sizes_are_refused(name):
    with pytest.raises(OssiaError, match=f"{name} must be at least 1, not 0"):
        Engine(FakeDecoder(), **{name: 0})


def test_logits_that_are_not_numbers_name_the_request_and_spare_the_others():
    decoder = FakeDecoder()
    engine = Engine(decoder)
    decoder.broken_token = 13
    healthy = engine.add(Request([1, 2], SamplingParams(seed=5, max_tokens=6)))
    broken = engine.add(greedy([12, 13], 6))
    for _ in range(2):  # nothing was booked: the step can be tried again
        with pytest.raises(LogitsError, match=f"request {broken} are not finite") as caught:
            engine.step()
        assert caught.value.request_id == broken
    engine.abort(broken)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {output.request_id for output in outputs} == {healthy}
    decoder.broken_token = None
    (alone,) = engine.generate([Request([1, 2], SamplingParams(seed=5, max_tokens=6))])
    assert [output.token for output in outputs] == alone.tokens


def test_a_constraint_steers_its_request_alone():
    engine = Engine(FakeDecoder())
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
    engine = Engine(FakeDecoder())
    healthy = engine.add(Request([1, 2], SamplingParams(seed=5, max_tokens=6)))
    stuck = engine.add(Request([1, 2], SamplingParams(seed=5), lambda: Allows([3], [])))
    outputs = engine.step()
    for _ in range(2):
        with pytest.raises(ConstraintError) as caught:
            engine.step()
        assert caught.value.request_id == stuck
    engine.abort(stuck)
    while engine.has_work:
        outputs += engine.step()
    (alone,) = engine.generate([Request([1, 2], SamplingParams(seed=5, max_tokens=6))])
    assert [o.token for o in outputs if o.request_id == healthy] == alone.tokens


def test_generate_leaves_nothing_behind_when_it_fails():
    engine = Engine(FakeDecoder())
    with pytest.raises(OssiaError, match="empty"):
        engine.generate([greedy([1], 3), greedy([], 3)])
    assert_all_free(engine)


def test_generate_refuses_to_swallow_the_outputs_of_others():
    engine = Engine(FakeDecoder())
    engine.add(greedy([1], 3))
    with pytest.raises(RuntimeError, match="idle engine"):
        engine.generate([greedy([2], 3)])


def test_an_idle_step_does_nothing():
    assert Engine(FakeDecoder()).step() == []
    assert Engine(FakeDecoder()).generate([]) == []
