"""smolagents: an agent that calls tools, and one that writes code."""

from __future__ import annotations

import pytest

from tests.clients.scripts import CITY, call, final

smolagents = pytest.importorskip("smolagents")


@smolagents.tool
def weather(city: str) -> str:
    """What the weather is.

    Args:
        city: where
    """
    return f"rain in {city}"


@pytest.fixture
def model(scripted):
    return smolagents.OpenAIModel(scripted.model, api_base=scripted.url, api_key="none")


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_that_calls_tools(scripted, model, streamed):
    scripted(call("weather", CITY), call("final_answer", '{"answer": "Rain."}'))
    agent = smolagents.ToolCallingAgent(tools=[weather], model=model, stream_outputs=streamed)
    assert agent.run("What is the weather in Oslo?") == "Rain."
    assert "rain in Oslo" in scripted.prompts[-1]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_an_agent_that_writes_code(scripted, model, streamed, structured):
    code = 'final_answer(weather("Oslo"))'
    written = f"I look.\n<code>\n{code}\n</code>"
    if structured:
        written = '{"thought": "I look.", "code": "final_answer(weather(\'Oslo\'))"}'
    scripted(final(written))
    agent = smolagents.CodeAgent(
        tools=[weather],
        model=model,
        stream_outputs=streamed,
        use_structured_outputs_internally=structured,
    )
    assert agent.run("What is the weather in Oslo?") == "rain in Oslo"
