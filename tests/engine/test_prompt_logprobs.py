"""Log-probabilities of prompts are the log-softmax of the model's logits, however the prompt was
read: in chunks, beside others, after a preemption, with pages of earlier texts at hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ossia
from ossia.engine import Engine, Failure, LogitsError, PromptOutput, Request, SamplingParams
from ossia.engine import logprobs as module
from ossia.errors import OssiaError
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation, next_tokens
from tests.engine.invariants import assert_all_free, check
from tests.transformers_models import CONFIGS, random_model, tokens


def scored(top: int = 0, start: int = 1, **sampling) -> SamplingParams:
    values = {"temperature": 0, "max_tokens": 0, **sampling}
    return SamplingParams(prompt_logprobs=top, prompt_logprobs_from=start, **values)


def assert_right(output: PromptOutput | None, prompt: list[int], logits: Tensor, start: int = 1):
    """The scores are those of logits (tokens, vocab) after each token of the prompt."""
    assert output is not None
    rows = logits[start - 1 : len(prompt) - 1].double().log_softmax(-1)
    assert [s.token for s in output.logprobs] == prompt[start:]
    for row, score in zip(rows, output.logprobs, strict=True):
        assert score.logprob == pytest.approx(row[score.token].item(), abs=2e-4)
        top = row.topk(len(score.top))
        assert [value for _, value in score.top] == pytest.approx(top.values.tolist(), abs=2e-4)
        found = row[[id for id, _ in score.top]]
        assert found.tolist() == pytest.approx(top.values.tolist(), abs=2e-4)


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_they_are_those_of_transformers(family, tmp_path):
    theirs = random_model(CONFIGS[family])
    theirs.save_pretrained(tmp_path)
    decoder = ossia.load_model(tmp_path)
    prompts = [tokens(1, length, seed=length)[0].tolist() for length in (1, 2, 40, 150)]
    logits = [theirs(torch.tensor([prompt])).logits[0] for prompt in prompts]
    sizes = [{"prefill_chunk": 512}, {"prefill_chunk": 7, "page_size": 4}, {"max_batch": 1}]
    for options in sizes:
        engine = build(decoder, **options)
        for _ in range(2):  # the second time with the pages of the first
            results = engine.generate(Request(prompt, scored(3)) for prompt in prompts)
            for prompt, result, expected in zip(prompts, results, logits, strict=True):
                assert_right(result.prompt, prompt, expected)
                assert (result.tokens, result.finish_reason) == ([], "length")
        (result,) = engine.generate([Request(prompts[3], scored(2, 100, max_tokens=3))])
        assert_right(result.prompt, prompts[3], logits[3], 100)
        assert result.prompt is not None
        assert 80 <= result.prompt.cached_tokens <= 99
        assert len(result.tokens) == 3
        assert_all_free(engine)


def fake_logits(prompt: list[int]) -> Tensor:
    return FakeDecoder().unembed(next_tokens(torch.tensor(prompt))[:, None].float())


def play(engine: Engine, requests: list[Request]) -> dict[int, list]:
    outputs: dict[int, list] = {engine.add(request): [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        check(engine)
    assert_all_free(engine)
    return outputs


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_they_survive_preemption(prefix_cache):
    decoder = FakeDecoder((None, 5))
    engine = build(decoder, 96, page_size=4, prefill_chunk=9, prefix_cache=prefix_cache)
    prompts = [[n, *range(n, n + 20)] for n in range(4)]
    outputs = play(engine, [Request(p, scored(2, max_tokens=40)) for p in prompts])
    assert engine.stats().preemptions > 0
    for prompt, (first, *others) in zip(prompts, outputs.values(), strict=True):
        assert isinstance(first, PromptOutput)
        assert_right(first, prompt, fake_logits(prompt))
        assert first.finish_reason is None
        assert [output.token for output in others] == continuation(prompt, 40)


def test_a_long_prompt_is_scored_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7 * VOCAB + 1)
    blocks: list[int] = []

    class Watched(FakeDecoder):
        def unembed(self, hidden):
            blocks.append(len(hidden))
            return super().unembed(hidden)

    prompt = list(range(50))
    (result,) = build(Watched(), prefill_chunk=64).generate([Request(prompt, scored(1))])
    assert_right(result.prompt, prompt, fake_logits(prompt))
    assert max(blocks) == 7


def test_a_shared_context_is_read_once():
    decoder = FakeDecoder((None, 5), context_length=400)
    engine = build(decoder, page_size=4, prefill_chunk=64)
    context = [n * 7 % VOCAB for n in range(200)]
    prompts = [[*context, n, n + 1, n + 2] for n in range(4)]
    results = engine.generate(Request(prompts[0], scored(0, 200)) for _ in range(1))
    results += engine.generate(Request(prompt, scored(0, 200)) for prompt in prompts[1:])
    for prompt, result in zip(prompts, results, strict=True):
        assert_right(result.prompt, prompt, fake_logits(prompt), 200)
    assert sum(map(sum, decoder.steps)) == 203 + 3 * (203 - 196)


def test_a_prompt_without_an_answer_may_fill_the_context():
    decoder = FakeDecoder(context_length=64)
    engine = build(decoder, page_size=4)
    prompt = list(range(64))
    (result,) = engine.generate([Request(prompt, scored())])
    assert_right(result.prompt, prompt, fake_logits(prompt))
    with pytest.raises(OssiaError, match="65 tokens, more than the model's context of 64"):
        engine.add(Request([*prompt, 1], scored()))
    with pytest.raises(OssiaError, match="leaves no room for an answer"):
        engine.add(Request(prompt, scored(max_tokens=1)))
    small = build(decoder, 20, page_size=4, max_batch=2)
    assert small.generate([Request(prompt[:20], scored())])[0].prompt is not None
    with pytest.raises(OssiaError, match="21 tokens, and the cache holds 20"):
        small.add(Request(prompt[:21], scored()))


def test_a_prompt_is_only_read_without_scores_too():
    engine = build(FakeDecoder())
    (outputs,) = play(engine, [Request([1, 2, 3], SamplingParams(max_tokens=0))]).values()
    assert outputs == [PromptOutput(0, (), "length")]
    assert engine.stats().generated_tokens == 0


def test_damaged_logits_end_only_the_prompt_that_meets_them():
    decoder = FakeDecoder()
    decoder.broken_token = 90
    good, bad = [1, 2, 3, 4], [5, 90, 6]
    outputs = play(build(decoder), [Request(good, scored()), Request(bad, scored())])
    assert_right(outputs[0][0], good, fake_logits(good))
    (failure,) = outputs[1]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, LogitsError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs must be at least 0"),
        ({"prompt_logprobs_from": 0}, "prompt_logprobs_from must be at least 1"),
        ({"prompt_logprobs": VOCAB + 1}, f"prompt_logprobs asks for {VOCAB + 1}"),
    ],
)
def test_what_cannot_be_reported_is_refused(values, message):
    with pytest.raises(OssiaError, match=message):
        build(FakeDecoder()).add(Request([1], SamplingParams(**values)))
