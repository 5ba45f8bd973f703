"""OpenAI's own client for Python."""

from __future__ import annotations

import json

import pytest

from tests.clients.scripts import ANSWER, CITY, PARAMETERS, QUESTION, WEATHER, call, final

openai = pytest.importorskip("openai")


def client_of(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def test_the_model_in_the_package_counts(stdlib):
    client = client_of(stdlib)
    assert [model.id for model in client.models.list()] == [stdlib.model]
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    answer = client.chat.completions.create(
        model=stdlib.model, messages=question, temperature=0, max_completion_tokens=300
    )
    assert "4" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    response = client.responses.create(
        model=stdlib.model, input="What is 2 + 2?", temperature=0, max_output_tokens=300
    )
    assert "4" in response.output_text
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_chat_whole_and_streamed(scripted):
    client = client_of(scripted(ANSWER, ANSWER))
    answer = client.chat.completions.create(model="scripted", messages=QUESTION)
    assert answer.choices[0].message.content == "Forty-two, é!"
    assert answer.choices[0].message.reasoning_content == "Hm."
    with client.chat.completions.stream(
        model="scripted", messages=QUESTION, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        streamed = stream.get_final_completion()
    assert "".join(deltas) == streamed.choices[0].message.content == "Forty-two, é!"
    assert streamed.choices[0].finish_reason == "stop"
    assert streamed.usage == answer.usage


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(scripted, streamed):
    client = client_of(scripted(call("weather", CITY), final("Rain.")))
    options = {"model": "scripted", "tools": [WEATHER]}
    if streamed:
        with client.chat.completions.stream(messages=QUESTION, **options) as stream:
            answer = stream.get_final_completion()
    else:
        answer = client.chat.completions.create(messages=QUESTION, **options)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (called,) = choice.message.tool_calls
    assert json.loads(called.function.arguments) == {"city": "Oslo"}
    result = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    messages = [*QUESTION, choice.message, result]
    answer = client.chat.completions.create(messages=messages, **options)
    assert answer.choices[0].message.content == "Rain."
    prompt = scripted.prompts[-1]
    assert "functions.weather to=assistant" in prompt
    assert "Look." in prompt  # the thoughts that led to the call


def test_responses_with_a_call_and_state(scripted):
    client = client_of(scripted(call("weather", CITY), final("Rain."), final("Yes.")))
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
    with client.responses.stream(
        model="scripted", input="What is the weather in Oslo?", tools=[tool]
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    called = response.output[-1]
    assert (called.type, called.name) == ("function_call", "weather")
    output = {"type": "function_call_output", "call_id": called.call_id, "output": "rain"}
    response = client.responses.create(
        model="scripted", input=[output], tools=[tool], previous_response_id=response.id
    )
    assert response.output_text == "Rain."
    assert "functions.weather to=assistant" in scripted.prompts[-1]
    response = client.responses.create(
        model="scripted", input="Sure?", previous_response_id=response.id
    )
    assert response.output_text == "Yes."
    assert "Look." not in scripted.prompts[-1]  # thoughts end with the turn
    assert client.responses.retrieve(response.id).output_text == "Yes."


def test_errors_are_the_clients_own(scripted):
    client = client_of(scripted())
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="other", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="scripted", messages=QUESTION, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="scripted", input="Hello", conversation="conv_1")
    assert refused.value.param == "conversation"


def test_an_asynchronous_client_of_many(scripted):
    import asyncio

    scripted(*[ANSWER] * 8)

    async def ask(client):
        stream = await client.chat.completions.create(
            model="scripted", messages=QUESTION, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=scripted.url, api_key="none") as client:
            return await asyncio.gather(*[ask(client) for _ in range(8)])

    assert asyncio.run(ask_all()) == ["Forty-two, é!"] * 8
