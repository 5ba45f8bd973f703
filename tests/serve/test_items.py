"""Items: what a response includes, what clients send back, and the listing of an input."""

from __future__ import annotations

import pytest

from tests.serve import golden
from tests.serve.conftest import ANSWER, CALL, Served, openai

pytest.importorskip("fastapi")

from ossia.errors import OssiaError
from ossia.serve.responses.seal import Seal
from ossia.serve.responses.store import ResponseStore

TOOLS = [{"type": "function", "name": "weather", "description": "Says it.", "parameters": None}]
TOLD = (
    "<|channel|>analysis<|message|>Hm, é.<|end|><|start|>assistant<|channel|>commentary<|message|>"
    "I look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
    '<|message|>{"city": "Oslo"}<|call|>'
)
QUESTION = {"role": "user", "content": "?"}
SEALED = ["reasoning.encrypted_content"]


def create(served: Served, **options):
    return served.client.responses.create(**{"model": "tiny", "input": "?", **options})


def back(item, **changes) -> dict:
    """An item as a client sends it back."""
    return item.model_dump(exclude_none=True) | changes


@pytest.mark.parametrize(
    ("name", "script", "options"),
    [
        ("responses_answer", ANSWER, {}),
        ("responses_call", TOLD, {"tools": TOOLS, "include": []}),
        ("responses_cut_off", ANSWER[:-15], {"max_output_tokens": 99}),
        ("responses_background", "<|channel|>final<|message|>Hi<|return|>", {"background": True}),
        (
            "responses_logprobs",
            "<|channel|>final<|message|>Hi<|return|>",
            {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
        ),
    ],
)
def test_events_are_as_they_were_found_right(serve, name, script, options):
    events = list(create(serve(script), stream=True, **options))
    for event in events:  # the client builds them without a check
        type(event).model_validate(event.to_dict())
    golden.check(name, [event.to_dict() for event in events])


class TestReasoning:
    def test_a_client_may_keep_it_for_the_server(self, serve):
        served = serve(TOLD, ANSWER)
        first = create(served, tools=TOOLS, store=False, include=SEALED)
        reasoning, words, call = first.output
        assert reasoning.encrypted_content
        assert "Hm" not in reasoning.encrypted_content
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        said = [back(reasoning, content=None), back(words), back(call), result]
        create(served, input=[QUESTION, *said], tools=TOOLS, store=False, include=SEALED)
        assert "<|channel|>analysis<|message|>Hm, é.<|end|>" in served.prompt()
        assert "<|channel|>commentary<|message|>I look.<|end|>" in served.prompt()

    def test_it_is_only_there_if_it_was_asked_for(self, serve):
        served = serve(ANSWER)
        response = create(served)
        assert response.output[0].encrypted_content is None
        again = served.client.responses.retrieve(response.id, include=SEALED)
        sealed = {"type": "reasoning", "summary": [], "encrypted_content": ""}
        sealed["encrypted_content"] = again.output[0].encrypted_content
        assert Seal(served.store.key).open(sealed["encrypted_content"]) == "Hm."

    @pytest.mark.parametrize("change", ["changed", "cut", "foreign", "empty", "not ascii"])
    def test_what_was_changed_is_refused(self, serve, change):
        served = serve(ANSWER)
        sealed = create(served, store=False, include=SEALED).output[0].encrypted_content
        middle = len(sealed) // 2
        other = "A" if sealed[middle] != "A" else "B"
        sealed = {
            "changed": sealed[:middle] + other + sealed[middle + 1 :],
            "cut": sealed[:-4],
            "foreign": Seal(bytes(32)).close("Hm."),
            "empty": "",
            "not ascii": "ossia1.é",
        }[change]
        item = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
        with pytest.raises(openai.BadRequestError) as error:
            create(served, input=[QUESTION, item, QUESTION])
        assert error.value.param == "input[1].encrypted_content"
        assert error.value.code == "invalid_encrypted_content"

    def test_a_file_of_responses_keeps_its_key(self, tmp_path):
        store = ResponseStore(tmp_path / "responses.sqlite")
        sealed = Seal(store.key).close("Hm.\ud800")
        assert Seal(store.key).close("Hm.\ud800") != sealed
        store.close()
        again = ResponseStore(tmp_path / "responses.sqlite")
        assert Seal(again.key).open(sealed) == "Hm.\ud800"
        with pytest.raises(OssiaError, match="another server"):
            Seal(ResponseStore().key).open(sealed)

    def test_it_is_kept_over_calls_and_dropped_after_the_answer(self, serve):
        served = serve(TOLD, CALL, ANSWER, ANSWER)
        response = create(served, tools=TOOLS)
        for n, thought in enumerate((("Hm, é.",), ("Hm, é.", "Look."))):
            call = response.output[-1]
            result = {"type": "function_call_output", "call_id": call.call_id, "output": str(n)}
            response = create(served, input=[result], tools=TOOLS, previous_response_id=response.id)
            assert served.prompt().count("<|channel|>analysis") == len(thought)
            for text in thought:
                assert f"<|channel|>analysis<|message|>{text}" in served.prompt()
        create(served, input="And?", tools=TOOLS, previous_response_id=response.id)
        assert "<|channel|>analysis" not in served.prompt()
        assert served.prompt().count("to=functions.weather") == 2
        assert "Forty-two" in served.prompt()


class TestWordsBeforeCalls:
    """Clients may leave `phase` out, which says whether words are an answer."""

    @pytest.mark.parametrize("phase", ["commentary", None])
    def test_they_are_a_preamble(self, serve, phase):
        served = serve(TOLD, ANSWER)
        reasoning, words, call = create(served, tools=TOOLS).output
        said = [back(reasoning), back(words), back(call)]
        if phase is None:
            del said[1]["phase"]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        create(served, input=[QUESTION, *said, result], tools=TOOLS)
        assert "<|channel|>commentary<|message|>I look.<|end|>" in served.prompt()
        assert "Hm, é." in served.prompt()

    def test_an_answer_is_none(self, serve):
        served = serve(ANSWER)
        answer = {"role": "assistant", "content": "It rains."}
        create(served, input=[QUESTION, answer, QUESTION])
        assert "<|channel|>final<|message|>It rains.<|end|>" in served.prompt()


def test_log_probabilities_are_those_of_the_text(serve):
    served = serve(ANSWER, ANSWER, ANSWER)
    include = ["message.output_text.logprobs"]
    whole = create(served, include=include, top_logprobs=1)
    told = whole.output[1].content[0].logprobs
    assert bytes(byte for token in told for byte in token.bytes).decode() == "Forty-two, é!"
    assert {token.logprob for token in told} == {-0.5}
    assert [token.top_logprobs[0].token for token in told] == [token.token for token in told]
    events = [*create(served, include=include, top_logprobs=1, stream=True)]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [token.token for event in deltas for token in event.logprobs] == [
        token.token for token in told
    ]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert len(done.logprobs) == len(told)
    assert served.engine.requests[0].sampling.logprobs == 1
    again = served.client.responses.retrieve(whole.id, include=include)
    assert again.output[1].content[0].logprobs == told
    without = create(served)
    assert served.engine.requests[2].sampling.logprobs is None
    with pytest.raises(openai.BadRequestError) as error:
        served.client.responses.retrieve(without.id, include=include)
    assert error.value.param == "include"


class TestInputItems:
    def test_they_are_listed_in_pages(self, serve):
        served = serve(TOLD, ANSWER)
        first = create(served, input=[QUESTION], tools=TOOLS, instructions="Not an item.")
        result = {
            "type": "function_call_output",
            "call_id": first.output[-1].call_id,
            "output": "rain",
        }
        second = create(served, input=[result], tools=TOOLS, previous_response_id=first.id)
        items = served.client.responses.input_items
        newest_first = [*items.list(second.id)]
        for item in newest_first:
            type(item).model_validate(item.to_dict())
        assert [item.type for item in newest_first] == [
            "function_call_output",
            "function_call",
            "message",
            "reasoning",
            "message",
        ]
        assert newest_first[-1].content[0].to_dict() == {"type": "input_text", "text": "?"}
        assert [item.to_dict() for item in newest_first[1:4]] == [
            item.to_dict() for item in first.output[::-1]
        ]
        oldest_first = [*items.list(second.id, order="asc", limit=2)]  # which asks for 3 pages
        assert oldest_first == newest_first[::-1]
        page = items.list(second.id, order="asc", limit=2, after=oldest_first[0].id)
        assert (page.data, page.has_more) == (oldest_first[1:3], True)
        assert items.list(second.id, after=newest_first[3].id).data == newest_first[4:]

    @pytest.mark.parametrize(
        ("query", "param"),
        [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")],
    )
    def test_a_wrong_page_is_refused_by_name(self, serve, query, param):
        served = serve(ANSWER)
        id = create(served).id
        with pytest.raises(openai.BadRequestError) as error:
            served.client.get(f"/responses/{id}/input_items?{query}", cast_to=object)
        assert error.value.param == param

    def test_those_of_no_response_are_not_there(self, serve):
        with pytest.raises(openai.NotFoundError):
            serve().client.responses.input_items.list("resp_x")


def test_a_kept_item_can_be_named(serve):
    served = serve(TOLD, ANSWER, ANSWER)
    first = create(served, input=[QUESTION], tools=TOOLS)
    (question,) = served.client.responses.input_items.list(first.id).data
    result = {
        "type": "function_call_output",
        "call_id": first.output[-1].call_id,
        "output": "rain",
    }
    create(served, input=[result], previous_response_id=first.id, tools=TOOLS)
    named = [{"type": "item_reference", "id": item.id} for item in (question, *first.output)]
    create(served, input=[*named, result], tools=TOOLS)
    assert served.engine.requests[1].prompt == served.engine.requests[2].prompt
    for id in ("msg_x", named[0]["id"][:-1] + "9", ""):
        with pytest.raises(openai.NotFoundError) as error:
            create(served, input=[QUESTION, {"type": "item_reference", "id": id}])
        assert error.value.param == "input[1]"
