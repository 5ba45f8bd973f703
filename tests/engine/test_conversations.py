"""What a conversation's next turn reads again: the tokens that are new, rounded up to pages."""

from __future__ import annotations

import random

import pytest

from ossia.engine import Engine, Request, SamplingParams
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation
from tests.engine.invariants import check

PAGE = 16
KINDS = [(None,), (None, 128)]  # of Qwen3 and of gpt-oss


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


def ask(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], int]:
    """A reply of `count` tokens, checked, and how many tokens of the prompt were read for it."""
    decoder = engine.runner.decoder
    assert isinstance(decoder, FakeDecoder)
    before = len(decoder.steps)
    sampling = SamplingParams(temperature=0, max_tokens=count)
    (result,) = engine.generate([Request(prompt, sampling)])
    assert result.tokens == continuation(prompt, count)
    check(engine)
    read = sum(map(sum, decoder.steps[before:])) - (count - 1)
    assert {output.cached_tokens for output in result.outputs} == {len(prompt) - read}
    return result.tokens, read


@pytest.mark.parametrize("windows", KINDS)
def test_a_conversation_of_4000_tokens_continued_by_200_reads_200(windows):
    engine = build(FakeDecoder(windows, context_length=8192), 10_000, prefill_chunk=512)
    prompt = ids(3500, 1)
    reply, read = ask(engine, prompt, 500)
    assert read == 3500
    _, read = ask(engine, [*prompt, *reply, *ids(200, 2)], 20)
    assert 200 < read <= 200 + PAGE
    assert engine.stats().prefix_hits == 4200 - read


@pytest.mark.parametrize("windows", KINDS)
def test_a_harmony_chat_reads_again_only_what_follows_the_last_user_message(windows):
    """harmony drops the analysis of a turn from the prompts of later ones: here 2,000 tokens."""
    decoder = FakeDecoder(windows, context_length=4096)
    engine = build(decoder, 5000, prefill_chunk=512, max_batch=2)
    prompt = ids(1500, 1)
    # The reply alone evicts pages of the sliding layers, and another one more of them.
    reply, _ = ask(engine, prompt, 2100)
    ask(engine, ids(300, 2), 400)
    answer, question = reply[2000:], ids(80, 3)
    _, read = ask(engine, [*prompt, *answer, *question], 1)
    assert 180 <= read < 180 + PAGE
    if len(windows) > 1:
        assert engine.stats().evictions > 100


@pytest.mark.parametrize("windows", KINDS)
def test_an_agents_turn_reads_again_only_the_tools_results(windows):
    engine = build(FakeDecoder(windows, context_length=8192), 12_000, prefill_chunk=512)
    text = ids(2000, 1)
    for call in range(4):
        reply, read = ask(engine, text, 150 + call)
        if call:
            assert 400 < read <= 400 + PAGE
        text += reply
        # Meanwhile another conversation goes on.
        ask(engine, ids(500, 50 + call), 100)
        text += ids(400, 10 + call)


def test_requests_that_begin_with_the_same_system_prompt_read_it_once():
    engine = build(FakeDecoder((None, 128), context_length=8192), 12_000, prefill_chunk=512)
    system = ids(1000, 1)
    reads = [ask(engine, [*system, *ids(50, seed)], 30)[1] for seed in range(10, 16)]
    assert reads[0] == 1050
    assert all(50 <= read < 50 + PAGE for read in reads[1:])


def test_requests_that_come_together_read_their_common_prompt_once():
    decoder = FakeDecoder((None, 128), context_length=8192)
    engine = build(decoder, 12_000, prefill_chunk=512)
    system = ids(1600, 1)
    prompts = [[*system, *ids(10 + seed, seed)] for seed in range(8)]
    sampling = SamplingParams(temperature=0, max_tokens=20)
    results = engine.generate([Request(prompt, sampling) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        assert result.tokens == continuation(prompt, 20)
    check(engine)
    read = sum(map(sum, decoder.steps)) - 8 * 19
    assert read == 1600 + sum(10 + seed for seed in range(8))
    # Without an end of their own they wait for no page that nobody will publish.
    results = engine.generate([Request(ids(100, 99), sampling)] * 8)
    assert len({tuple(result.tokens) for result in results}) == 1


def test_without_a_prefix_cache_everything_is_read_again():
    decoder = FakeDecoder((None, 128), context_length=8192)
    engine = build(decoder, 10_000, prefill_chunk=512, prefix_cache=False)
    prompt = ids(700, 1)
    for _ in range(2):
        assert ask(engine, prompt, 5)[1] == 700
    assert engine.stats().prefix_hits == 0
