"""Pydantic AI, over Chat Completions and over Responses."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.scripts import ANSWER, CITY, call, final

pydantic_ai = pytest.importorskip("pydantic_ai")
models = pytest.importorskip("pydantic_ai.models.openai")
providers = pytest.importorskip("pydantic_ai.providers.openai")
pydantic = pytest.importorskip("pydantic")


class City(pydantic.BaseModel):
    city: str


@pytest.fixture(params=["OpenAIChatModel", "OpenAIResponsesModel"])
def model(request, scripted):
    provider = providers.OpenAIProvider(base_url=scripted.url, api_key="none")
    return getattr(models, request.param)(scripted.model, provider=provider)


def test_a_chat_whole_and_streamed(scripted, model):
    scripted(ANSWER, ANSWER)
    agent = pydantic_ai.Agent(model, instructions="Be brief.")
    done = agent.run_sync("What is six by seven?")
    assert done.output == "Forty-two, é!"
    assert done.usage.output_tokens > 0
    assert [part.part_kind for part in done.response.parts] == ["thinking", "text"]

    async def streamed():
        async with agent.run_stream("What is six by seven?") as stream:
            return [text async for text in stream.stream_text(delta=True, debounce_by=None)]

    parts = asyncio.run(streamed())
    assert "".join(parts) == "Forty-two, é!"
    assert len(parts) > 1


def test_a_tool(scripted, model):
    scripted(call("weather", CITY), final("Rain."))
    agent = pydantic_ai.Agent(model)

    @agent.tool_plain
    def weather(city: str) -> str:
        return f"rain in {city}"

    done = agent.run_sync("What is the weather in Oslo?")
    assert done.output == "Rain."
    assert "rain in Oslo" in scripted.prompts[-1]
    assert "Look." in scripted.prompts[-1]


def test_an_answer_of_a_type_through_a_call(scripted, model):
    scripted(call("final_result", CITY))
    agent = pydantic_ai.Agent(model, output_type=City)
    assert agent.run_sync("Which city?").output == City(city="Oslo")


def test_an_answer_of_a_type_through_a_format(scripted, model):
    scripted(final(CITY))
    agent = pydantic_ai.Agent(model, output_type=pydantic_ai.NativeOutput(City))
    assert agent.run_sync("Which city?").output == City(city="Oslo")
