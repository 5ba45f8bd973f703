"""Completions as OpenAI's client reads them, whole and streamed."""

from __future__ import annotations

import pytest

from ossia.serve.completions import Completion
from tests.scripted import eventually
from tests.serve.conftest import Served, end_after, openai


def create(served: Served, **options):
    return served.client.completions.create(model="tiny", **options)


def test_each_prompt_has_its_choices_in_order(serve):
    served = serve("one", "uno", "two", "due")
    answer = create(served, prompt=["a", "bb"], n=2)
    Completion.model_validate(answer.model_dump(exclude_unset=True))
    assert [choice.text for choice in answer.choices] == ["one", "uno", "two", "due"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)


@pytest.mark.parametrize("prompt", [[5, 6], [[5, 6]]])
def test_a_prompt_may_be_ids(serve, prompt):
    served = serve("x")
    assert create(served, prompt=prompt).choices[0].text == "x"
    assert served.engine.requests[0].prompt == [5, 6]
    assert served.engine.requests[0].sampling.max_tokens == 16


def test_a_prompt_is_echoed(serve):
    served = serve(" a time", " a time", " a time")
    ids = served.llm.tokenizer.encode("Once upon")
    for prompt in ("Once upon", ids):
        assert create(served, prompt=prompt, echo=True).choices[0].text == "Once upon a time"
    chunks = create(served, prompt="Once upon", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once upon a time"


def test_a_stream_is_the_same_text_in_parts(serve):
    served = serve("né", "né", "né", "né")
    whole = create(served, prompt=["a", "b"], logprobs=1)
    chunks = list(
        create(
            served,
            prompt=["a", "b"],
            logprobs=1,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks.pop().usage == whole.usage
    for n in (0, 1):
        parts = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == n]
        assert "".join(part.text for part in parts) == "né"
        assert parts[-1].finish_reason == "length"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            joined = [value for part in parts for value in getattr(part.logprobs, name)]
            assert joined == getattr(whole.choices[n].logprobs, name)


def test_log_probabilities_are_those_of_the_tokens_of_the_text(serve):
    logprobs = create(serve("abé STOP"), prompt="p", logprobs=1, stop="STOP").choices[0].logprobs
    assert logprobs.tokens == ["a", "b", "bytes:\\xc3", "bytes:\\xa9", " "]
    assert logprobs.token_logprobs == [-0.5] * 5
    assert logprobs.top_logprobs == [{token: -0.5} for token in logprobs.tokens]
    assert logprobs.text_offset == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echoed_prompt_has_log_probabilities(serve, as_ids):
    served = serve("xy<|end|>", "xy<|end|>")
    ids = served.llm.tokenizer.encode("né a")
    options = {"prompt": [ids] if as_ids else "né a", "echo": True, "logprobs": 1, "max_tokens": 2}
    whole = create(served, **options).choices[0]
    found = whole.logprobs
    assert whole.text == "né axy<|end|>"
    assert found.tokens == ["n", "bytes:\\xc3", "bytes:\\xa9", " ", "a", "x", "y", "<|end|>"]
    assert found.token_logprobs == [None, -0.25, -0.25, -0.25, -0.25, -0.5, -0.5, -0.5]
    assert found.text_offset == [0, 1, 1, 2, 3, 4, 5, 6]
    first = served.llm.tokenizer.decode([0])
    assert found.top_logprobs[0] is None
    assert found.top_logprobs[4:6] == [{first: -0.125, "a": -0.25}, {"x": -0.5}]
    chunks = [chunk.choices[0] for chunk in create(served, **options, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for chunk in chunks for value in getattr(chunk.logprobs, name)]
        assert joined == getattr(found, name)


def test_an_echoed_prompt_that_was_not_read_in_time_has_none(serve):
    served = serve("x", "x")
    served.engine.endless = True
    end_after(served, 20)
    step = served.engine.step
    served.engine.step = lambda: [output for output in step() if output.request_id == 0]
    read, unread = create(served, prompt=["ab", "cd"], echo=True, logprobs=0).choices
    assert (read.text[:3], read.finish_reason) == ("abx", "length")
    assert (unread.text, unread.finish_reason) == ("cd", "length")
    assert unread.logprobs.tokens == ["c", "d"]
    assert unread.logprobs.token_logprobs == unread.logprobs.top_logprobs == [None, None]
    assert unread.logprobs.text_offset == [0, 1]


@pytest.mark.parametrize("answer", ["x", "<|return|>", "é"])
def test_what_lm_eval_asks_for_has_one_token_after_the_prompt_whatever_it_is(serve, answer):
    """It sums token_logprobs[context:-1]; the last may be an end of text, or half a character."""
    served = serve()
    tokenizer = served.llm.tokenizer
    served.llm._eos_ids = frozenset(tokenizer.encode_control("<|return|>"))
    served.engine._scripts = iter([tokenizer.encode_control(answer)[:1]])
    ids = tokenizer.encode("ab")
    choice = create(
        served, prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    ).choices[0]
    assert choice.logprobs.token_logprobs == [None, -0.25, -0.5]
    assert choice.text == {"x": "abx", "<|return|>": "ab", "é": "ab\ufffd"}[answer]
    # Whether a token is the most likely one is seen by its equality with the largest of them.
    assert max(choice.logprobs.top_logprobs[2].values()) == -0.5


def test_a_prompt_can_be_scored_alone(serve):
    served = serve("x", "x")
    choice = create(served, prompt="abc", echo=True, logprobs=0, max_tokens=0).choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.token_logprobs == [None, -0.25, -0.25]
    assert choice.logprobs.top_logprobs == [None, {"b": -0.25}, {"c": -0.25}]
    answer = create(served, prompt="abc", max_tokens=0)
    assert answer.choices[0].text == ""
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("prompt", {"prompt": []}),
        ("prompt[0]", {"prompt": [-1, 5]}),
        ("best_of", {"best_of": 3}),
        ("suffix", {"suffix": "x"}),
        ("logprobs", {"logprobs": 21}),
        (None, {"prompt": [5, 10**9]}),
        (None, {"prompt": [""]}),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(serve, param, options):
    served = serve()
    with pytest.raises(openai.BadRequestError) as error:
        create(served, **{"prompt": "p", **options})
    assert error.value.param == param
    assert not served.engine.requests


def test_an_id_outside_the_vocabulary_takes_the_other_prompts_out(serve):
    served = serve("x")
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        create(served, prompt=[[5], [10**6]])
    # The engine's thread takes it out after the answer may have come.
    assert eventually(lambda: served.llm.stats().unfinished == 0 or served.engine.aborted == [0])
