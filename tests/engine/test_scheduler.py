"""The scheduler by itself: drafted tokens, of which some are accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ossia.engine.kv import PagedText
from ossia.engine.request import PromptOutput, SamplingParams, TokenOutput
from ossia.engine.sampler import Sample
from ossia.engine.sampler_state import SamplerState
from ossia.engine.scheduler import Chunk, Scheduler, Sequence
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import FakeDecoder, continuation
from tests.engine.invariants import check

PROMPT = [5, 6, 7, 8, 9, 10]


def sequence(max_length: int, stop_ids: frozenset[int] = frozenset()) -> Sequence:
    state = SamplerState(0, SamplingParams(), PROMPT)
    return Sequence(0, PagedText(list(PROMPT), len(PROMPT)), max_length, stop_ids, state)


def samples(tokens: list[int]) -> list[Sample]:
    return [Sample(token, None, ()) for token in tokens]


def tokens(outputs: list[TokenOutput | PromptOutput]) -> list[int]:
    return [output.token for output in outputs if isinstance(output, TokenOutput)]


def drafted(scheduler: Scheduler, draft: list[int]) -> Chunk:
    """The next chunk, with drafted tokens after the text's last."""
    (chunk,) = scheduler.schedule()
    assert scheduler.kv.grow(chunk.sequence.text, chunk.end + len(draft))
    return replace(chunk, tokens=(*chunk.tokens, *draft), wanted=1 + len(draft))


@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_drafted_tokens_count_as_far_as_they_are_accepted(accepted):
    decoder = FakeDecoder((None, 3))
    engine = build(decoder, page_size=2)
    scheduler, text = engine.scheduler, continuation(PROMPT, 12)
    waiting = sequence(40)
    scheduler.waiting.append(waiting)
    step = scheduler.schedule()
    assert engine.runner.run(step).logits.argmax(-1).tolist() == text[:1]
    scheduler.commit(step, [samples(text[:1])], [[]])
    # A draft whose first tokens are right, and the others wrong.
    chunk = drafted(scheduler, [*text[1 : 1 + accepted], *[90] * (3 - accepted)])
    logits = engine.runner.run([chunk]).logits
    assert len(logits) == 4
    found = logits.argmax(-1).tolist()
    right = text[1 : accepted + 2]
    assert found[: accepted + 1] == right
    outputs = scheduler.commit([chunk], [samples(found)], [[]])
    assert tokens(outputs) == right
    assert waiting.text.columns == -(-waiting.computed // 2)  # no page of a rejected token
    assert waiting.computed == len(PROMPT) + accepted + 1
    assert waiting.text.tokens == PROMPT + text[: accepted + 2]
    check(engine)
    # It goes on as if the rejected ones had never been there.
    (chunk,) = scheduler.schedule()
    assert chunk.tokens == (text[accepted + 1],)
    assert engine.runner.run([chunk]).logits.argmax(-1).tolist() == [text[accepted + 2]]
    scheduler.commit([chunk], [samples([text[accepted + 2]])], [[]])
    check(engine)


def test_a_draft_ends_at_a_stop_id_and_at_the_longest_length():
    text = continuation(PROMPT, 12)
    for stop_ids, max_length in [(frozenset({text[2]}), 40), (frozenset(), len(PROMPT) + 3)]:
        engine = build(FakeDecoder((None, 3)), page_size=2)
        scheduler = engine.scheduler
        scheduler.waiting.append(sequence(max_length, stop_ids))
        scheduler.commit(scheduler.schedule(), [samples(text[:1])], [[]])
        chunk = drafted(scheduler, text[1:4])
        outputs = scheduler.commit([chunk], [samples(text[1:5])], [[]])
        assert tokens(outputs) == text[1:3]
        reasons = [output.finish_reason for output in outputs]
        assert reasons == [None, "stop" if stop_ids else "length"]
        assert not scheduler.running
        check(engine)
        # What stays cached ends with what counts.
        again = PagedText(PROMPT + text[:8], len(PROMPT))
        assert scheduler.kv.match(again) == 8
