"""LiteLLM, by its provider hosted_vllm, which is for any server that speaks OpenAI's API."""

from __future__ import annotations

import json

import pytest

from tests.clients.scripts import ANSWER, CITY, QUESTION, WEATHER, call, final

litellm = pytest.importorskip("litellm")


@pytest.fixture
def options(scripted):
    return {
        "model": f"hosted_vllm/{scripted.model}",
        "api_base": scripted.url,
        "api_key": "none",
        "num_retries": 0,
    }


def test_a_chat_whole_and_streamed(scripted, options):
    scripted(ANSWER, ANSWER)
    answer = litellm.completion(messages=QUESTION, reasoning_effort="low", **options)
    assert answer.choices[0].message.content == "Forty-two, é!"
    assert answer.choices[0].message.reasoning_content == "Hm."
    assert "Reasoning: low" in scripted.prompts[0]
    chunks = list(
        litellm.completion(
            messages=QUESTION, stream=True, stream_options={"include_usage": True}, **options
        )
    )
    streamed = litellm.stream_chunk_builder(chunks)
    assert streamed.choices[0].message.content == "Forty-two, é!"
    assert streamed.choices[0].message.reasoning_content == "Hm."
    assert streamed.usage.completion_tokens == answer.usage.completion_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(scripted, options, streamed):
    scripted(call("weather", CITY), final("Rain."))
    answer = litellm.completion(messages=QUESTION, tools=[WEATHER], stream=streamed, **options)
    if streamed:
        answer = litellm.stream_chunk_builder(list(answer))
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (called,) = choice.message.tool_calls
    assert json.loads(called.function.arguments) == json.loads(CITY)
    result = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    answer = litellm.completion(
        messages=[*QUESTION, choice.message, result], tools=[WEATHER], **options
    )
    assert answer.choices[0].message.content == "Rain."
    assert "Look." in scripted.prompts[-1]


def test_responses(scripted, options):
    scripted(final("Rain."))
    options["model"] = f"openai/{scripted.model}"
    response = litellm.responses(input="What is the weather in Oslo?", **options)
    assert response.output_text == "Rain."


def test_an_error(scripted, options):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(messages=QUESTION, temperature=-1, **options)
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        litellm.completion(messages=QUESTION, **{**options, "model": "hosted_vllm/other"})
