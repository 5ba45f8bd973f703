"""OpenAI's Agents SDK, over Responses, which it prefers, and over Chat Completions."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.scripts import CITY, call, final

agents = pytest.importorskip("agents")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

agents.set_tracing_disabled(True)  # traces go to OpenAI


class City(pydantic.BaseModel):
    city: str


@agents.function_tool
def weather(city: str) -> str:
    """What the weather is."""
    return f"rain in {city}"


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def model(request, scripted):
    client = openai.AsyncOpenAI(base_url=scripted.url, api_key="none", max_retries=0)
    return getattr(agents, request.param)(model=scripted.model, openai_client=client)


def test_a_tool(scripted, model):
    scripted(call("weather", CITY), final("Rain."))
    agent = agents.Agent("Meteorologist", instructions="Look.", model=model, tools=[weather])
    done = agents.Runner.run_sync(agent, "What is the weather in Oslo?")
    assert done.final_output == "Rain."
    assert "rain in Oslo" in scripted.prompts[-1]


def test_a_tool_streamed(scripted, model):
    scripted(call("weather", CITY), final("Rain."))
    agent = agents.Agent("Meteorologist", model=model, tools=[weather])

    async def run():
        done = agents.Runner.run_streamed(agent, "What is the weather in Oslo?")
        deltas = [
            event.data.delta
            async for event in done.stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]
        return deltas, done.final_output

    deltas, output = asyncio.run(run())
    assert "".join(deltas) == output == "Rain."


def test_an_answer_of_a_type(scripted, model):
    scripted(final(CITY))
    agent = agents.Agent("Geographer", model=model, output_type=City)
    assert agents.Runner.run_sync(agent, "Which city?").final_output == City(city="Oslo")


def test_a_handoff(scripted, model):
    scripted(call("transfer_to_poet", "{}"), final("It rains."))
    poet = agents.Agent("Poet", handoff_description="Writes.", model=model)
    agent = agents.Agent("Editor", model=model, handoffs=[poet])
    done = agents.Runner.run_sync(agent, "A poem of rain.")
    assert (done.final_output, done.last_agent) == ("It rains.", poet)


def test_a_conversation_that_the_server_keeps(scripted):
    client = openai.AsyncOpenAI(base_url=scripted.url, api_key="none", max_retries=0)
    model = agents.OpenAIResponsesModel(model=scripted.model, openai_client=client)
    scripted(final("Rain."), final("Yes."))
    agent = agents.Agent("Meteorologist", model=model)
    first = agents.Runner.run_sync(agent, "What is the weather in Oslo?")
    second = agents.Runner.run_sync(agent, "Sure?", previous_response_id=first.last_response_id)
    assert second.final_output == "Yes."
    assert "What is the weather in Oslo?" in scripted.prompts[-1]
