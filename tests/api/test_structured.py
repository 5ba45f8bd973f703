"""Structured output through LLM, over the engine and a model that babbles: it follows what is asked
at any temperature, in any batch, when preempted, and fails alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import torch

from ossia import text
from ossia.api import LLM
from ossia.engine import Request, SamplingParams
from ossia.errors import OssiaError
from tests.babble import Babbler
from tests.engine.engines import engine

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

ASK = [{"role": "user", "content": "?"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 5}, "b": {"enum": [1, 2]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}


@pytest.fixture
def babbling(bytes_folder, same_draws) -> Iterator[LLM]:
    """An LLM for harmony whose model writes any token."""
    tokenizer = text.load_tokenizer(bytes_folder)
    chat_format = text.load_format(bytes_folder, tokenizer)
    with LLM.from_parts(engine(Babbler(tokenizer)), tokenizer, chat_format) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_a_chat_s_answer_follows_its_schema(babbling: LLM, temperature: float) -> None:
    whole = 0
    for seed in range(4):
        reply = babbling.chat(
            ASK, response_format=STRICT, temperature=temperature, seed=seed, max_tokens=400
        )
        assert reply.finish_reason in ("stop", "length")
        if reply.finish_reason == "stop":
            whole += 1
            jsonschema.validate(json.loads(reply.content), SCHEMA)
    assert whole or not temperature  # without chance it may never end


def test_a_call_that_must_be_made_is_made(babbling: LLM) -> None:
    for tool_choice in ("required", {"type": "function", "function": {"name": "f"}}):
        reply = babbling.chat(ASK, [TOOL], tool_choice=tool_choice, seed=1, max_tokens=1500)
        assert reply.finish_reason == "tool_calls"
        (call,) = reply.tool_calls
        assert call.name == "f"
        jsonschema.validate(json.loads(call.arguments), SCHEMA)


def test_a_cut_answer_is_a_prefix_and_says_so(babbling: LLM) -> None:
    (completion,) = babbling.generate(
        "x", structured_outputs={"regex": "[ab]{50}"}, max_tokens=20, ignore_eos=True
    )
    assert completion.finish_reason == "length"
    assert re.fullmatch("[ab]{20}", completion.text)


def test_prompts_of_one_batch_each_follow_the_structure(babbling: LLM) -> None:
    completions = babbling.generate(
        ["a", "b", "c"], structured_outputs={"choice": ["left", "right"]}, temperature=2.0
    )
    assert {completion.text for completion in completions} <= {"left", "right"}
    assert {completion.finish_reason for completion in completions} == {"stop"}


def test_what_ends_a_text_is_all_that_follows_it(babbling: LLM) -> None:
    (completion,) = babbling.generate(
        "x", structured_outputs={"regex": "ab"}, max_tokens=9, ignore_eos=True
    )
    assert len(completion.token_ids) == 9
    assert {*completion.token_ids[2:]} <= babbling.chat_format.stop_ids


def test_a_schema_that_cannot_be_enforced_asks_the_engine_nothing(babbling: LLM) -> None:
    schema = {"name": "n", "schema": {"not": {}}, "strict": True}
    wrong = {"type": "json_schema", "json_schema": schema}
    for ask in (lambda **o: babbling.chat(ASK, **o), lambda **o: babbling.generate("x", **o)):
        with pytest.raises(OssiaError, match=r"^response_format\.json_schema\.schema: .*not"):
            ask(response_format=wrong)
        with pytest.raises(OssiaError, match="structured_outputs: give it or response_format"):
            ask(response_format=STRICT, structured_outputs={"regex": "a"})
    assert babbling.stats().unfinished == 0


# ------------------------------------------------------------------ in the engine


def asks(llm: LLM, count: int) -> list[Request]:
    """Requests of all kinds, every third without a constraint."""
    made = []
    for n in range(count):
        match n % 3:
            case 0:
                ask = llm.prepare(ASK, response_format=STRICT, seed=n, max_tokens=60)
            case 1:
                ask = llm.prepare_text("ab" * n, structured_outputs={"regex": "[ab]{90}c*"}, seed=n)
            case _:
                ask = llm.prepare_text("x" * (n + 1), seed=n, max_tokens=30)
        made.append(ask.request)
    return made


def test_constraints_change_nothing_in_batches_and_under_preemption(babbling: LLM) -> None:
    model = Babbler(babbling.tokenizer)
    requests = asks(babbling, 9)
    alone = [engine(model).generate([request])[0].tokens for request in requests]
    together = engine(model)
    assert [result.tokens for result in together.generate(requests)] == alone
    crowded = engine(model, positions=500, prefix_cache=False)
    assert [result.tokens for result in crowded.generate(requests)] == alone
    assert crowded.stats().preemptions > 0


def test_a_constraint_that_fails_midway_fails_its_request_alone(babbling: LLM) -> None:
    class Fails:
        def __init__(self, inner):
            self.inner, self.count = inner, 0

        def mask(self, bits):
            self.count += 1
            if self.count == 5:
                raise OssiaError("the grammar is beyond its limits")
            self.inner.mask(bits)

        def accept(self, ids):
            self.inner.accept(ids)

        def copy(self):
            raise NotImplementedError

    model, (first, second) = Babbler(babbling.tokenizer), asks(babbling, 2)
    make = first.constraint
    assert make is not None
    broken = Request(first.prompt, first.sampling, lambda: Fails(make()))
    run = engine(model)
    bad, good = run.add(broken), run.add(second)
    outputs = []
    while run.has_work:
        outputs += run.step()
    (failure,) = [
        output for output in outputs if output.request_id == bad and hasattr(output, "error")
    ]
    assert "failed with OssiaError: the grammar is beyond its limits" in str(failure.error)
    tokens = [output.token for output in outputs if output.request_id == good]
    assert tokens == engine(model).generate([second])[0].tokens


def test_greedy_sampling_takes_the_likeliest_allowed(babbling: LLM) -> None:
    model = Babbler(babbling.tokenizer)
    ask = babbling.prepare_text("x", structured_outputs={"regex": "[ab]"}, temperature=0)
    (result,) = engine(model).generate([ask.request])
    prompt = torch.tensor(list(ask.request.prompt))
    logits = model.unembed(
        model.hidden_states(prompt[-1:], model.context(prompt, torch.tensor([0]), None))
    )
    allowed = [babbling.tokenizer.encode(letter)[0] for letter in "ab"]
    assert result.tokens[0] == max(allowed, key=lambda id: logits[0, id])
    assert ask.request.sampling == SamplingParams(
        temperature=0, stop_ids=ask.request.sampling.stop_ids
    )
