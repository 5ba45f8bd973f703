"""Chat Completions as OpenAI's client reads it, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ossia.serve.chat_wire import ChatCompletion, ChatCompletionChunk, ChatRequest
from tests.serve.conftest import ANSWER, CALL, openai

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Says it."}}]


def merged(chunks) -> dict[int, dict[str, Any]]:
    """The choices of a stream, put together as clients do."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True))
        for part in chunk.choices:
            choice = choices.setdefault(
                part.index, {"content": "", "reasoning": "", "calls": {}, "logprobs": []}
            )
            choice["content"] += part.delta.content or ""
            choice["reasoning"] += getattr(part.delta, "reasoning_content", None) or ""
            for call in part.delta.tool_calls or ():
                known = choice["calls"].setdefault(call.index, [call.id, call.function.name, ""])
                known[2] += call.function.arguments
            choice["logprobs"] += part.logprobs.content if part.logprobs else []
            choice["reason"] = part.finish_reason
    return choices


def test_an_answer_has_its_reasoning_its_end_and_what_it_took(serve):
    served = serve(ANSWER)
    answer = served.chat()
    ChatCompletion.model_validate(answer.model_dump(exclude_unset=True))
    (choice,) = answer.choices
    assert choice.message.content == "Forty-two, é!"
    assert choice.message.reasoning_content == "Hm."
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.prompt_tokens == len(served.engine.requests[0].prompt)
    assert usage.completion_tokens == len(served.llm.tokenizer.encode_control(ANSWER))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == len("Hm.")
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_is_the_same_answer_in_parts(serve):
    served = serve(ANSWER, ANSWER)
    whole = served.chat()
    chunks = list(served.chat(stream=True, stream_options={"include_usage": True}))
    assert merged(chunks)[0]["content"] == whole.choices[0].message.content
    assert merged(chunks)[0]["reasoning"] == "Hm."
    assert merged(chunks)[0]["reason"] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done(serve):
    connection = serve(ANSWER).connect()
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "?"}]}
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


def test_a_call_of_a_tool_is_answered_and_goes_on(serve):
    served = serve(CALL, CALL, ANSWER)
    message = served.chat(tools=TOOLS).choices[0].message
    streamed = merged(served.chat(tools=TOOLS, stream=True))[0]
    (call,) = message.tool_calls
    assert message.content is None
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    assert streamed["calls"][0][1:] == ["weather", '{"city": "Oslo"}']
    assert streamed["calls"][0][0].startswith("call_")
    assert streamed["reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    question = {"role": "user", "content": "?"}
    answer = served.chat(messages=[question, message, result], tools=TOOLS).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("stop", "Forty-two, é!")
    for part in ('{"city": "Oslo"}', "sunny", "Look.", "type weather"):
        assert part in served.prompt()


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_comes_back_under_any_name(serve, name):
    served = serve(ANSWER)
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], name: "I must look."}
    result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    served.chat(messages=[{"role": "user", "content": "?"}, said, result], tools=TOOLS)
    assert "I must look." in served.prompt()


def test_what_clients_add_to_a_message_without_content_is_no_error(serve):
    said = {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None}
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y"}],
    }
    served = serve(ANSWER)
    served.chat(messages=[said, question], extra_body={"response_format": None, "audio": None})
    assert "Why" in served.prompt()


def test_choices_share_a_prompt_and_draw_by_seeds_of_their_own(serve):
    served = serve(ANSWER, CALL, ANSWER, CALL)
    answer = served.chat(n=2, seed=7)
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "tool_calls"]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [request.sampling.seed for request in served.engine.requests] == [7, 8]
    assert answer.usage.prompt_tokens == len(served.engine.requests[0].prompt)
    streamed = merged(served.chat(n=2, stream=True))
    assert (streamed[0]["content"], streamed[1]["reason"]) == ("Forty-two, é!", "tool_calls")


def test_log_probabilities_are_those_of_the_content(serve):
    served = serve(ANSWER, ANSWER)
    whole = served.chat(logprobs=True, top_logprobs=1).choices[0].logprobs.content
    streamed = merged(served.chat(logprobs=True, top_logprobs=1, stream=True))[0]["logprobs"]
    assert streamed == whole
    assert b"".join(bytes(token.bytes) for token in whole).decode() == "Forty-two, é!"
    assert {token.logprob for token in whole} == {-0.5}
    assert [token.top_logprobs[0].token for token in whole] == [token.token for token in whole]


def test_tokens_of_a_stop_string_have_no_log_probability(serve):
    served = serve(ANSWER, ANSWER)
    choice = served.chat(logprobs=True, stop=["two", "x"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Forty-", "stop")
    assert [token.token for token in choice.logprobs.content] == [*"Forty-"]
    assert merged(served.chat(stop="two", stream=True))[0]["content"] == "Forty-"


def test_an_answer_that_was_cut_off_says_so(serve):
    served = serve("<|channel|>final<|message|>Forty-tw", CALL.removesuffix("}<|call|>"))
    assert served.chat().choices[0].finish_reason == "length"
    cut = served.chat(tools=TOOLS).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.tool_calls[0].function.arguments == '{"city": "Oslo"'


def test_malformed_replies_reach_the_user(serve):
    served = serve("<|channel|>final Hello there, how are you?<|return|>")
    choice = served.chat().choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hello there, how are you?", "stop")
    assert "ossia_malformed_replies_total 1.0" in served.get("/metrics")[1]


def test_every_parameter_of_sampling_reaches_the_engine(serve):
    served = serve(ANSWER)
    served.chat(
        temperature=0.25,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=5,
        logit_bias={"65": -100},
        max_completion_tokens=99,
        extra_body={"top_k": 3, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    sampling = served.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.25, 0.5, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.125, 1.5)
    assert (sampling.seed, sampling.logit_bias, sampling.max_tokens) == (5, {65: -100}, 99)


def test_effort_and_tool_choice_shape_the_prompt(serve):
    served = serve(ANSWER, ANSWER)
    served.chat(reasoning_effort="high", tools=TOOLS, tool_choice="none", max_tokens=9)
    assert "Reasoning: high" in served.prompt()
    assert "weather" not in served.prompt()
    served.chat(reasoning_effort="none", tools=TOOLS, parallel_tool_calls=False)
    assert "Reasoning: low" in served.prompt()
    assert "weather" in served.prompt()


REFUSED = {
    "response_format": {"type": "xml"},
    "tool_choice": "required",
    "top_logprobs": 2,
    "temperature": "0.7",
    "top_p": 0,
    "n": 0,
    "max_tokens": 0,
    "stream_options": {"include_usage": True},
    "logit_bias": {"9999": 1},
    "reasoning_effort": "extreme",
    "store": True,
    "stop": "",
    "messages": [],
    "seed": 2**64,
    "best_of": 2,
    "messages[0].role": None,
    "messages[0].content[0].type": None,
    "tools[0].type": None,
    "tools[0].function.strict": None,
}
BODIES = {
    "messages[0].role": {"messages": [{"role": "boss", "content": "?"}]},
    "messages[0].content[0].type": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    },
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "tools[0].function.strict": {
        "tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]
    },
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(serve, param):
    served = serve()
    with pytest.raises(openai.BadRequestError) as error:
        served.chat(extra_body=BODIES.get(param) or {param: REFUSED[param]})
    if param != "stop":  # whose message begins with an article
        assert error.value.param == param
    assert param.rpartition(".")[2].partition("[")[0] in error.value.message
    assert error.value.type == "invalid_request_error"
    assert not served.engine.requests


def test_a_parameter_of_the_client_that_the_server_lacks_is_refused_by_name(serve):
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    served = serve()
    lacking = CompletionCreateParamsBase.__annotations__.keys() - ChatRequest.model_fields.keys()
    assert {"audio", "prediction", "web_search_options"} <= lacking
    for param in lacking:
        with pytest.raises(openai.BadRequestError) as error:
            served.chat(extra_body={param: {"any": "value"}})
        assert (error.value.param, error.value.code) == (param, "unsupported_parameter")


def test_another_model_is_not_found(serve):
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'") as error:
        serve().chat(model="gpt-5")
    assert error.value.code == "model_not_found"
