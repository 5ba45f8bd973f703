"""Speculation changes no output: tokens, log-probabilities and ends are those of plain decoding,
whatever is drafted, sampled, constrained, penalized, preempted or aborted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ossia.engine import (
    ConstraintError,
    Engine,
    Failure,
    LogitsError,
    Request,
    SamplingParams,
    TokenOutput,
)
from ossia.engine.draft import Lookahead, Pace, _continuation
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.ops import select
from tests.engine.constraints import Allows
from tests.engine.engines import engine as build
from tests.engine.fake_decoder import VOCAB, FakeDecoder, continuation
from tests.engine.invariants import assert_all_free, check
from tests.models import gpt2_like, gpt_oss_like, qwen3_like, qwen3_moe_like


class Guesses:
    """A drafter of which `skill` of 8 tokens are right. texts: what each request will say; else
    what a greedy FakeDecoder writes.
    """

    kv_bytes = 0

    def __init__(self, skill: int, texts: SequenceOf[SequenceOf[int]] = ()) -> None:
        self.skill, self.texts, self.count, self.kept = skill, texts, 0, set[int]()

    def keep(self, running: SequenceOf[Any]) -> None:
        self.kept = {sequence.id for sequence in running}

    def draft(self, ahead: SequenceOf[Lookahead]) -> None:
        for look in ahead:
            sequence = look.sequence
            assert sequence.id in self.kept
            begin = len(sequence.text.tokens) - sequence.text.prompt
            text = self.texts[sequence.id][begin:] if self.texts else []
            for token in text or continuation(sequence.text.tokens, look.most):
                self.count += 1
                wrong = self.count % 8 >= self.skill
                if not look.push((token + 1) % VOCAB if wrong else token):
                    break


class Cycle:
    """A constraint that allows an id only at every third place, and none after `end` tokens."""

    def __init__(self, banned: int, end: int = 10**6) -> None:
        self.banned, self.end, self.seen = banned, end, 0

    def mask(self, bits: memoryview) -> None:
        for token in range(VOCAB) if self.seen < self.end else ():
            if token % 3 != self.banned or self.seen % 3 == 0:
                bits[token // 32] |= 1 << token % 32

    def accept(self, ids: SequenceOf[int]) -> None:
        for token in ids:
            assert self.seen < self.end, "a token that was not allowed"
            assert token % 3 != self.banned or self.seen % 3 == 0, "a token that was not allowed"
            self.seen += 1

    def copy(self) -> Cycle:
        other = Cycle(self.banned, self.end)
        other.seen = self.seen
        return other


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    values: tuple[tuple[str, Any], ...]
    constraint: tuple[int, int] | None

    def request(self) -> Request:
        made = self.constraint
        return Request(
            self.prompt,
            SamplingParams(**dict(self.values)),
            None if made is None else lambda: Cycle(*made),
        )


SAMPLING = st.fixed_dictionaries(
    {"max_tokens": st.integers(0, 40), "seed": st.integers(0, 9)},
    optional={
        "temperature": st.sampled_from([0, 0.2, 1.0]),
        "top_p": st.just(0.9),
        "top_k": st.just(5),
        "repetition_penalty": st.just(1.3),
        "frequency_penalty": st.just(0.4),
        "presence_penalty": st.just(-0.5),
        "logit_bias": st.just({7: 2.0}),
        "logprobs": st.integers(0, 2),
        "prompt_logprobs": st.just(1),
        "stop_ids": st.sets(st.integers(0, VOCAB - 1), max_size=9).map(frozenset),
    },
).map(lambda values: tuple(values.items()))
ASKED = st.builds(
    Asked,
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40).map(tuple),
    SAMPLING,
    st.one_of(st.none(), st.tuples(st.integers(0, 2), st.sampled_from([10**6, 7]))),
)


def outputs_of(engine: Engine, asked: SequenceOf[Asked], gap: int = 2) -> list[list]:
    """What each request gives; one enters every `gap` steps."""
    waiting, found = list(asked), dict[int, list]()
    while waiting or engine.has_work:
        if waiting:
            found[engine.add(waiting.pop(0).request())] = []
        for _ in range(gap):
            for output in engine.step():
                if isinstance(output, Failure):
                    assert isinstance(output.error, ConstraintError | LogitsError)
                    found[output.request_id].append(type(output.error))
                else:
                    found[output.request_id].append(output)
            check(engine)
    assert_all_free(engine)
    return list(found.values())


def test_random_requests_give_what_they_give_without():
    seen: Counter[str] = Counter()

    @settings(max_examples=60, phases=[Phase.generate])
    @given(
        st.lists(ASKED, min_size=1, max_size=7),
        st.sampled_from([None, 45, 60]),
        st.integers(1, 7),
        st.integers(1, 12),
        st.integers(0, 8),
        st.sampled_from([(), (1, 2, 4), tuple(range(1, 17))]),
    )
    def play(asked, positions, page_size, chunk, skill, buckets):
        options = {"page_size": page_size, "prefill_chunk": chunk, "max_batch": 5}
        plain = build(FakeDecoder((None, 5)), positions, **options)
        expected = outputs_of(plain, asked)
        model = FakeDecoder((None, 5), buckets=buckets)
        engine = build(model, positions, **options, speculate="ngram", speculate_tokens=5)
        assert engine.speculation is not None
        if skill:
            texts = [[o.token for o in found if isinstance(o, TokenOutput)] for found in expected]
            engine.speculation._drafter = Guesses(skill, texts)
        assert outputs_of(engine, asked) == expected
        stats = engine.stats()
        assert engine.speculation._drafter is not None
        assert stats.generated_tokens == plain.stats().generated_tokens
        seen.update(
            drafted=stats.drafted_tokens,
            accepted=stats.accepted_tokens,
            preemptions=stats.preemptions,
            failed=sum(isinstance(o, type) for found in expected for o in found),
        )

    play()
    assert seen["drafted"] > 300
    assert 100 < seen["accepted"] < seen["drafted"]
    assert seen["preemptions"] > 3
    assert seen["failed"] > 3


def decoder(config: Any, backend: str = "auto", seed: int = 0) -> Decoder:
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config, select(backend)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.1 if name.endswith("bias") else 0.7, generator=generator)
    return model


def tokens_of(engine: Engine, **sampling: Any) -> list[list[tuple[int, float | None]]]:
    """Of eight requests whose prompts repeat themselves."""
    generator = torch.Generator().manual_seed(3)
    requests = []
    for n in range(8):
        part = torch.randint(0, 97, (5,), generator=generator).tolist()
        values = {"max_tokens": 36, "seed": n, "logprobs": 0, **sampling}
        requests.append(Request((part * 4)[: 8 + n], SamplingParams(**values)))
    results = engine.generate(requests)
    assert_all_free(engine)
    return [[(o.token, o.logprob) for o in result.outputs] for result in results]


FAMILIES = [gpt2_like, qwen3_like, qwen3_moe_like, gpt_oss_like]


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "sampling"),
    [
        (torch.float32, {"temperature": 0}),
        (torch.bfloat16, {"temperature": 0.7, "top_p": 0.9}),
        (torch.bfloat16, {"temperature": 0.5, "repetition_penalty": 1.2}),
    ],
)
def test_native_kernels_give_the_same_bits(config, dtype, sampling):
    pytest.importorskip("ossia.ops._native")
    model, small = decoder(config()).to(dtype), decoder(config(), seed=1).to(dtype)
    plain = build(model, prefill_chunk=512)
    expected = tokens_of(plain, **sampling)
    for draft in (None, model, small):
        options = {"speculate": "ngram" if draft is None else None, "draft": draft}
        engine = build(model, prefill_chunk=512, speculate_tokens=4, **options)
        assert tokens_of(engine, **sampling) == expected
        stats = engine.stats()
        assert stats.drafted_tokens > 0
        assert (engine.kv_bytes > engine.runner.pool.nbytes) == (draft is not None)
        if draft is model and dtype is torch.float32:  # the same numbers, and so the same tokens
            assert stats.accepted_tokens == stats.drafted_tokens


def test_int8_weights_and_pages_give_the_same_bits():
    pytest.importorskip("ossia.ops._native")
    model = decoder(gpt_oss_like()).to(torch.bfloat16)
    model.to_int8()
    expected = tokens_of(build(model, prefill_chunk=512, kv="int8"), temperature=0.7)
    engine = build(model, None, model, prefill_chunk=512, kv="int8")
    assert tokens_of(engine, temperature=0.7) == expected
    assert engine.stats().accepted_tokens > 0


@pytest.mark.parametrize("config", FAMILIES)
def test_the_reference_gives_the_same_tokens(config):
    """In torch a product of several rows may round another way than one of each, so that their
    log-probabilities differ in the last bits, and a token where two are that near.
    """
    model = decoder(config(), "reference")
    plain = tokens_of(build(model, prefill_chunk=512), temperature=0)
    for speculate, draft in (("ngram", None), (None, model)):
        engine = build(model, None, draft, prefill_chunk=512, speculate=speculate)
        found = tokens_of(engine, temperature=0)
        for one, other in zip(found, plain, strict=True):
            assert [token for token, _ in one] == [token for token, _ in other]
            assert [x for _, x in one] == pytest.approx([x for _, x in other], abs=1e-4)


def test_a_draft_model_reads_prompts_in_chunks_and_shares_what_it_has_read():
    draft = FakeDecoder((None,))
    engine = build(FakeDecoder((None, 5)), page_size=4, prefill_chunk=20, draft=draft)
    prompt = [n * 7 % VOCAB for n in range(70)]
    for suffix in ([], [3]):
        (result,) = engine.generate(
            [Request(prompt + suffix, SamplingParams(temperature=0, max_tokens=30))]
        )
        assert result.tokens == continuation(prompt + suffix, 30)
    assert max(map(sum, draft.steps)) <= 20
    assert sum(map(sum, draft.steps)) < 70 + 2 * 60  # not the prompt twice
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens > 30


def test_a_draft_model_of_a_short_context_drafts_no_further():
    engine = build(FakeDecoder((None, 5)), draft=FakeDecoder((None,), context_length=30))
    prompt = [1, 2, 3]
    request = Request(prompt, SamplingParams(temperature=0, max_tokens=60))
    assert engine.generate([request])[0].tokens == continuation(prompt, 60)
    assert 10 < engine.stats().accepted_tokens < 30


def test_a_draft_model_that_fails_ends_the_drafts_and_nothing_else(caplog):
    draft = FakeDecoder((None,))
    draft.error = ZeroDivisionError("a bug in the draft model")
    engine = build(FakeDecoder((None, 5)), draft=draft)
    request = Request([1, 2], SamplingParams(temperature=0, max_tokens=20))
    assert engine.generate([request])[0].tokens == continuation([1, 2], 20)
    assert "nothing is drafted any more: ZeroDivisionError" in caplog.text


def test_repetitions_are_accepted_in_full():
    class Echo(FakeDecoder):
        """Says the token after the one read, in a circle of 9."""

        def unembed(self, hidden):
            return super().unembed(hidden)

        def hidden_states(self, tokens, context):
            super().hidden_states(tokens, context)
            return ((tokens + 1) % 9)[:, None].float()

    engine = build(Echo(), speculate="ngram", speculate_tokens=8)
    prompt = [*range(9), 0, 1]
    request = Request(prompt, SamplingParams(temperature=0, max_tokens=91))
    assert engine.generate([request])[0].tokens == [n % 9 for n in range(2, 93)]
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens
    # Nine tokens a step, but for the first, which the prompt's last chunk gives.
    assert len(engine.runner.decoder.steps) == 1 + 90 // 9  # type: ignore[attr-defined]


def test_what_follows_the_latest_and_longest_occurrence_is_found():
    def place(ids):
        data = bytearray(b"".join(i.to_bytes(4, "little") for i in ids))
        return _continuation(data)

    assert place([1, 2, 3]) is None
    assert place([]) is None
    assert place([1, 2, 9, 1, 2, 8, 1, 2]) == 5
    assert place([4, 1, 2, 9, 1, 2, 8, 4, 1, 2]) == 3
    assert place([7, 7, 7, 7]) == 3
    # Bytes that match across the borders of ids are no occurrence.
    assert place([0x01000000, 0x02000000, 5, 1, 2, 0x00010000, 0x00020000]) is None
    assert place([256, 512, 1, 2, 1, 256, 512, 9, 1, 2]) == 4


def test_the_pace_follows_what_is_accepted():
    pace = Pace(8)
    assert pace.next() == 8
    pace.note(8, 2)
    assert pace.next() == 3
    pace.note(3, 3)
    assert pace.next() == 6
    for _ in range(5):
        pace.note(4, 0)
    rests = 0
    while not pace.next():
        rests += 1
    assert rests == 32
    pace.note(1, 1)
    assert pace.next() == 2


def test_damaged_logits_end_a_request_after_the_same_tokens():
    asked = [Asked((3, 1, 4, 1, 5), (("temperature", 0), ("max_tokens", 20)), None)]
    for place in range(8):
        decoder = FakeDecoder((None, 5))
        decoder.broken_token = continuation([3, 1, 4, 1, 5], 8)[place]
        expected = outputs_of(build(decoder), asked)
        assert expected[0][-1] is LogitsError
        engine = build(decoder, speculate="ngram", speculate_tokens=4)
        assert engine.speculation is not None
        engine.speculation._drafter = Guesses(8)
        assert outputs_of(engine, asked) == expected


def test_drafts_take_no_pages_from_other_texts():
    engine = build(FakeDecoder((None,)), 40, page_size=4, max_batch=4, speculate="ngram")
    assert engine.speculation is not None
    engine.speculation._drafter = Guesses(8)
    prompts = [[n, 1, 2, 3, 4, 5, 6] for n in range(4)]
    asked = [Asked(tuple(p), (("temperature", 0), ("max_tokens", 3)), None) for p in prompts]
    found = outputs_of(engine, asked)
    assert [[o.token for o in outputs] for outputs in found] == [
        continuation(prompt, 3) for prompt in prompts
    ]
    assert engine.stats().preemptions == 0


def test_a_constraint_that_cannot_be_copied_is_followed_without_drafts():
    class Single(Allows):
        def copy(self):
            raise NotImplementedError

    engine = build(FakeDecoder(), speculate="ngram")
    sampling = SamplingParams(temperature=0, max_tokens=12)
    (result,) = engine.generate([Request([1, 2, 1, 2], sampling, lambda: Single({1}, {2}, {1}))])
    assert result.tokens == [1, 2, *[1] * 10]
    assert engine.stats().drafted_tokens == 0


def test_what_cannot_draft_is_refused():
    other = FakeDecoder()
    other.config = gpt2_like()
    with pytest.raises(
        OssiaError, match="draft model's vocabulary has 101 ids, and the model's 97"
    ):
        build(FakeDecoder(), draft=other)
    with pytest.raises(OssiaError, match="takes the draft model itself, not its name x"):
        build(FakeDecoder(), speculate="x")
