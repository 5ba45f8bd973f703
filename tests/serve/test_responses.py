"""Responses as OpenAI's client reads them: whole, streamed, kept, and gone on from."""

from __future__ import annotations

import pytest

from tests.serve.conftest import ANSWER, CALL, Served, openai

TOOLS = [{"type": "function", "name": "weather", "description": "Says it.", "parameters": None}]
TOLD = (
    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
    "to=functions.weather <|constrain|>json<|message|>{}<|call|>"
)


def create(served: Served, **options):
    return served.client.responses.create(**{"model": "tiny", "input": "?", **options})


def test_a_response_has_its_reasoning_its_text_and_what_it_took(serve):
    served = serve(ANSWER)
    response = create(served, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    reasoning, message = response.output
    assert [part.text for part in reasoning.content] == ["Hm."]
    assert (message.role, message.phase, message.status) == (
        "assistant",
        "final_answer",
        "completed",
    )
    assert response.output_text == "Forty-two, é!"
    assert (response.status, response.error, response.metadata) == ("completed", None, {"a": "b"})
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    assert response.usage.input_tokens == len(served.engine.requests[0].prompt)
    assert "Be brief." in served.prompt()
    assert served.engine.requests[0].sampling.temperature == 0.5


def test_events_come_in_the_official_order(serve):
    events = list(create(serve(ANSWER), stream=True))
    for event in events:  # the client builds them without a check
        type(event).model_validate(event.to_dict())
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds: list[str] = []
    for event in events:
        if event.type not in kinds[-1:]:
            kinds.append(event.type)
    assert [kind.removeprefix("response.") for kind in kinds] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    final = events[-1].response
    assert text == final.output_text == "Forty-two, é!"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == final.output
    indices = [event.output_index for event in events if hasattr(event, "output_index")]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1}


def test_a_call_is_an_item_and_goes_on_from_its_result(serve):
    served = serve(CALL, ANSWER, CALL)
    response = create(served, tools=TOOLS)
    call = response.output[-1]
    assert (call.type, call.name, call.arguments) == (
        "function_call",
        "weather",
        '{"city": "Oslo"}',
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    answer = create(served, input=[result], previous_response_id=response.id, tools=TOOLS)
    assert answer.output_text == "Forty-two, é!"
    for part in ("?", "Look.", '{"city": "Oslo"}', "sunny"):
        assert part in served.prompt()
    events = list(create(served, tools=TOOLS, stream=True))
    for event in events:
        type(event).model_validate(event.to_dict())
    arguments = [e for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in arguments) == '{"city": "Oslo"}'
    assert events[-1].response.output[-1].call_id != call.call_id


def test_items_that_the_client_sends_back_itself_make_the_same_prompt(serve):
    served = serve(TOLD, ANSWER, ANSWER)
    first = create(served, tools=TOOLS)
    assert [item.type for item in first.output] == ["message", "function_call"]
    assert first.output[0].phase == "commentary"
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"}
    create(served, input=[result], previous_response_id=first.id, tools=TOOLS)
    said = [item.model_dump(exclude_none=True) for item in first.output]
    question = {"role": "user", "content": "?"}
    create(served, input=[question, *said, result], tools=TOOLS, store=False)
    assert served.engine.requests[1].prompt == served.engine.requests[2].prompt
    assert "I look." in served.prompt()


def test_reasoning_is_dropped_once_an_answer_stands(serve):
    served = serve(ANSWER, ANSWER)
    first = create(served)
    create(served, previous_response_id=first.id, input="And then?")
    assert "Forty-two" in served.prompt()
    assert "Hm." not in served.prompt()


def test_an_answer_that_was_cut_off_is_incomplete(serve):
    served = serve(*["<|channel|>final<|message|>Forty-tw"] * 2)
    response = create(served)
    assert (response.status, response.output[-1].status) == ("incomplete", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert list(create(served, stream=True))[-1].type == "response.incomplete"


def test_a_stream_that_fails_says_so(serve):
    served = serve(ANSWER)
    served.engine.broken = {0}
    last = list(create(served, stream=True))[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "not finite" in last.response.error.message
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(last.response.id)


def test_a_response_is_kept_until_it_is_deleted(serve):
    served = serve(ANSWER, ANSWER)
    response = create(served)
    responses = served.client.responses
    assert responses.retrieve(response.id) == response
    responses.delete(response.id)
    for gone in (response.id, create(served, store=False).id):
        with pytest.raises(openai.NotFoundError):
            responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError) as error:
            create(served, previous_response_id=gone)
        assert error.value.param == "previous_response_id"


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("background", {"background": True, "store": False}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("stream_options", {"stream_options": {"include_obfuscation": False}}),
        ("metadata.a", {"metadata": {"a": "x" * 513}}),
        ("tools", {"tools": [*TOOLS, *TOOLS]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("text.format", {"text": {"format": {"type": "xml"}}}),
        ("conversation", {"conversation": "c"}),
        ("include[0]", {"include": ["file_search_call.results"]}),
        ("input[0]", {"input": [{"type": "computer_call_output", "call_id": "x"}]}),
        ("reasoning.summary", {"reasoning": {"summary": "detailed"}}),
        ("tools[0].strict", {"tools": [{**TOOLS[0], "strict": "yes"}]}),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(serve, param, options):
    served = serve()
    with pytest.raises(openai.BadRequestError) as error:
        create(served, **options)
    assert error.value.param == param
    assert not served.engine.requests
