"""Anthropic's own client for Python, over /v1/messages."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.scripts import ANSWER, CITY, PARAMETERS, QUESTION, call, final

anthropic = pytest.importorskip("anthropic")

TOOL = {"name": "weather", "description": "Says it.", "input_schema": PARAMETERS}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/oslo.png"}}


def client_of(server, kind="Anthropic"):
    return getattr(anthropic, kind)(base_url=server.root, api_key="none", max_retries=0)


@pytest.fixture
def options(scripted):
    return {"model": scripted.model, "max_tokens": 2000, "messages": QUESTION}


def test_the_model_in_the_package_counts(stdlib):
    client = client_of(stdlib)
    asked = {"model": stdlib.model, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    message = client.messages.create(**asked, max_tokens=300, thinking={"type": "adaptive"})
    thought, answer = message.content
    assert (thought.type, answer.type, message.stop_reason) == ("thinking", "text", "end_turn")
    assert "4" in answer.text
    assert message.usage.output_tokens_details.thinking_tokens > 0
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_an_answer_whole_and_streamed(scripted, options):
    client = client_of(scripted(ANSWER, ANSWER, ANSWER))
    options["system"] = [{"type": "text", "text": "Be brief."}]
    message = client.messages.create(**options)
    assert [block.text for block in message.content] == ["Forty-two, é!"]
    assert message.stop_reason == "end_turn"
    assert "Be brief." in scripted.prompts[0]
    with client.messages.stream(**options, thinking={"type": "adaptive"}) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert {"thinking", "signature", "text"} <= {*kinds}  # the client's own events of each delta
    thought, answer = streamed.content
    assert (thought.thinking, answer.text) == ("Hm.", "Forty-two, é!")
    assert streamed.usage.output_tokens == message.usage.output_tokens
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == "Forty-two, é!"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(scripted, options, streamed):
    client = client_of(scripted(call("weather", CITY), final("Rain.")))
    options |= {"tools": [TOOL], "thinking": {"type": "adaptive"}}
    if streamed:
        with client.messages.stream(**options) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**options)
    assert message.stop_reason == "tool_use"
    called = message.content[-1]
    assert (called.type, called.name, called.input) == ("tool_use", "weather", {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "rain"}
    options["messages"] = [
        *QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    (answer,) = client.messages.create(**options).content
    assert answer.text == "Rain."
    prompt = scripted.prompts[-1]
    assert "functions.weather to=assistant" in prompt
    assert "Look." in prompt  # the thoughts that led to the call


def test_the_client_s_own_loop_over_tools(scripted, options):
    @anthropic.beta_tool
    def weather(city: str) -> str:
        """What the weather is."""
        return f"rain in {city}"

    client = client_of(scripted(call("weather", CITY), final("Rain.")))
    message = client.beta.messages.tool_runner(**options, tools=[weather]).until_done()
    assert message.content[-1].text == "Rain."
    assert "rain in Oslo" in scripted.prompts[-1]


def test_an_answer_of_a_type(scripted, options):
    pydantic = pytest.importorskip("pydantic")
    city = pydantic.create_model("City", city=(str, ...))
    client = client_of(scripted(final(CITY)))
    message = client.messages.parse(**options, output_format=city)
    assert message.parsed_output == city(city="Oslo")


def test_errors_are_the_client_s_own(scripted, options):
    client = client_of(scripted())
    with pytest.raises(anthropic.NotFoundError, match="'other' does not exist"):
        client.messages.create(**{**options, "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences") as refused:
        client.messages.create(**options, stop_sequences=[1])
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    options["messages"] = [{"role": "user", "content": [IMAGE]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\].*text"):
        client.messages.create(**options)
    assert not scripted.prompts


def test_an_asynchronous_client_of_many(scripted, options):
    scripted(*[ANSWER] * 8)

    async def ask(client):
        async with client.messages.stream(**options) as stream:
            return await stream.get_final_text()

    async def ask_all():
        async with client_of(scripted, "AsyncAnthropic") as client:
            return await asyncio.gather(*[ask(client) for _ in range(8)])

    assert asyncio.run(ask_all()) == ["Forty-two, é!"] * 8
