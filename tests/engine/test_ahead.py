"""Steps that are launched before the one before them has been read: no output changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ossia.engine import Engine, Failure, Request, SamplingParams, TokenOutput
from ossia.model import Decoder
from ossia.ops import select
from tests.engine.constraints import Allows
from tests.engine.engines import engine as build
from tests.engine.invariants import assert_all_free, check
from tests.models import gpt_oss_like

OPS = select("auto")
pytestmark = pytest.mark.skipif(OPS.recorder() is None, reason="no native kernels to record")
LENGTHS = (1, 5, 30, 12)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = Decoder(gpt_oss_like(), OPS).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.1 if name.endswith("bias") else 1.0, generator=generator)
    return model


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 97, (n,), generator=generator).tolist() for n in LENGTHS]


class Watched:
    """An engine that counts the steps whose tokens only the device knew."""

    def __init__(self, decoder: Decoder, *, ahead: bool, **options) -> None:
        self.engine: Engine = build(decoder, page_size=4, prefill_chunk=16, **options)
        self.engine.ahead = ahead
        self.count = 0
        run = self.engine.runner.run

        def counted(step, tokens=None):
            self.count += tokens is not None
            return run(step, tokens)

        self.engine.runner.run = counted  # type: ignore[method-assign]

    def serve(self, requests: list[Request]) -> list[list[TokenOutput]]:
        ids = [self.engine.add(request) for request in requests]
        found: dict[int, list[TokenOutput]] = {id: [] for id in ids}
        while self.engine.has_work:
            for output in self.engine.step():
                assert isinstance(output, TokenOutput), output
                found[output.request_id].append(output)
            check(self.engine)
        assert_all_free(self.engine)
        return [found[id] for id in ids]


def both(decoder: Decoder, requests, **options) -> int:
    """The number of steps that were launched ahead; outputs are equal in every part."""
    plain, ahead = (Watched(decoder, ahead=on, **options) for on in (False, True))
    expected = plain.serve(requests())
    assert ahead.serve(requests()) == expected
    assert not plain.count
    return ahead.count


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_texts_end_and_begin_at_different_steps(decoder, max_batch):
    def requests():
        return [
            Request(prompt, SamplingParams(temperature=0, max_tokens=n))
            for prompt, n in zip(prompts(), (9, 20, 1, 15), strict=True)
        ]

    assert both(decoder, requests, max_batch=max_batch) > 10


def test_a_token_that_was_drawn_after_the_last_is_dropped(decoder):
    """Texts that stop by a token, which nobody knows when the next step is launched."""
    plain = Watched(decoder, ahead=False)
    greedy = SamplingParams(temperature=0, max_tokens=20)
    found = plain.serve([Request(prompt, greedy) for prompt in prompts()])
    stops = [tokens[6 + 3 * i].token for i, tokens in enumerate(found)]

    def requests():
        return [
            Request(prompt, replace(greedy, stop_ids=frozenset({stop})))
            for prompt, stop in zip(prompts(), stops, strict=True)
        ]

    assert both(decoder, requests) > 5


def test_a_seed_gives_the_same_tokens(decoder):
    def requests():
        return [
            Request(prompt, SamplingParams(temperature=t, top_k=k, seed=i, max_tokens=18))
            for i, (prompt, t, k) in enumerate(
                zip(prompts(), (1.0, 0.7, 2.0, 0.0), (0, 5, 40, 0), strict=True)
            )
        ]

    assert both(decoder, requests) > 10


@pytest.mark.parametrize(
    "special",
    [
        {"logprobs": 2},
        {"presence_penalty": 1.0},
        {"logit_bias": {3: 5.0}},
    ],
    ids=str,
)
def test_what_depends_on_tokens_waits_for_them(decoder, special):
    """As long as the request that needs it runs."""
    params = SamplingParams(temperature=0, max_tokens=6)

    def requests(others=24):
        plain = [Request(p, replace(params, max_tokens=others)) for p in prompts()[:2]]
        return [*plain, Request(prompts()[3], replace(params, **special))]

    assert both(decoder, requests) > 10
    assert both(decoder, lambda: requests(others=5)) == 0


def test_constraints_wait_for_tokens(decoder):
    def requests():
        params = SamplingParams(temperature=0, max_tokens=6)
        return [Request(prompts()[1], params, constraint=lambda: Allows(range(5, 40)))]

    assert both(decoder, requests) == 0


def test_drafts_wait_for_tokens(decoder):
    def requests():
        params = SamplingParams(temperature=0, max_tokens=12)
        return [Request([5, 6, 7] * 6, params)]

    assert both(decoder, requests, speculate="ngram") == 0


def test_a_request_that_is_dropped_leaves_its_token_and_its_pages(decoder):
    greedy = SamplingParams(temperature=0, max_tokens=20)
    expected = Watched(decoder, ahead=False).serve([Request(prompts()[2], greedy)])[0]
    watched = Watched(decoder, ahead=True)
    engine = watched.engine
    first = engine.add(Request(prompts()[1], greedy))
    second = engine.add(Request(prompts()[2], greedy))
    found = []
    for step in range(40):
        if step == 7:
            assert watched.count
            engine.abort(first)
            check(engine)
        for output in engine.step():
            assert isinstance(output, TokenOutput)
            assert step < 7 or output.request_id == second
            if output.request_id == second:
                found.append(output.token)
    assert found == [output.token for output in expected]
    assert_all_free(engine)
    # All of them gone while a step is on its way: the next request finds nothing of it.
    third = engine.add(Request(prompts()[1], greedy))
    for _ in range(4):
        engine.step()
    engine.abort(third)
    assert not engine.has_work
    assert watched.serve([Request(prompts()[2], greedy)])[0][-1].token == expected[-1].token


def test_logits_that_are_not_numbers_end_their_request_only(decoder):
    """Found a step later, after a step was launched that read no token there."""
    greedy = SamplingParams(temperature=0, max_tokens=20)
    expected = Watched(decoder, ahead=False).serve([Request(prompts()[2], greedy)])[0]
    watched = Watched(decoder, ahead=True)
    engine, draw = watched.engine, watched.engine.sampler.draw

    def spoiled(logits, states, ahead=0):
        drawn = draw(logits, states, ahead)
        if len(states) == 2 and watched.count == 5:
            drawn.ids[0] = -1
        return drawn

    engine.sampler.draw = spoiled  # type: ignore[method-assign]
    bad, good = (engine.add(Request(prompts()[i], greedy)) for i in (1, 2))
    failures, found = [], []
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Failure):
                failures.append((output.request_id, str(output.error)))
            elif isinstance(output, TokenOutput) and output.request_id == good:
                found.append(output.token)
    assert [id for id, _ in failures] == [bad]
    assert "not finite numbers" in failures[0][1]
    assert found == [output.token for output in expected]
    assert_all_free(engine)
