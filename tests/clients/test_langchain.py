"""LangChain's ChatOpenAI."""

from __future__ import annotations

import pytest

from tests.clients.scripts import ANSWER, CITY, call, final

langchain_openai = pytest.importorskip("langchain_openai")
tools = pytest.importorskip("langchain_core.tools")
messages = pytest.importorskip("langchain_core.messages")
pydantic = pytest.importorskip("pydantic")


@tools.tool
def weather(city: str) -> str:
    """What the weather is."""
    return f"rain in {city}"


def chat(server, **options):
    return langchain_openai.ChatOpenAI(
        base_url=server.url, api_key="none", model=server.model, max_retries=0, **options
    )


def test_the_model_in_the_package_counts(stdlib):
    answer = chat(stdlib, temperature=0, max_completion_tokens=300).invoke("What is 2 + 2?")
    assert "4" in answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def test_a_chat_whole_and_streamed(scripted):
    model = chat(scripted(ANSWER, ANSWER), stream_usage=True)
    answer = model.invoke([("system", "Be brief."), ("human", "What is six by seven?")])
    assert answer.content == "Forty-two, é!"
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(model.stream("What is six by seven?"))
    assert "".join(chunk.content for chunk in chunks) == "Forty-two, é!"
    (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert usage["output_token_details"]["reasoning"] > 0


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_and_its_result(scripted, responses, streamed):
    scripted(call("weather", CITY), final("Rain."))
    model = chat(scripted, use_responses_api=responses).bind_tools([weather])
    said = [messages.HumanMessage("What is the weather in Oslo?")]
    if streamed:
        first, *rest = model.stream(said)
        for chunk in rest:
            first += chunk
    else:
        first = model.invoke(said)
    (called,) = first.tool_calls
    result = weather.invoke(called)
    assert result.content == "rain in Oslo"
    answer = model.invoke([*said, first, result])
    assert answer.text == "Rain."
    assert "functions.weather to=assistant" in scripted.prompts[-1]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_an_answer_of_a_type(scripted, method):
    class City(pydantic.BaseModel):
        city: str

    scripted(call("City", CITY) if method == "function_calling" else final(CITY))
    model = chat(scripted).with_structured_output(City, method=method)
    assert model.invoke("Which city? Answer in JSON.") == City(city="Oslo")
