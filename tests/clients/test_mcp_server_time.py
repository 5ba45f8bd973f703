"""mcp-server-time, whose tools the server runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import scripted_server, stdlib_server
from tests.clients.scripts import call, final

openai = pytest.importorskip("openai")

PROGRAM = Path(sys.executable).with_name("mcp-server-time")
COMMAND = f"time={shlex.quote(str(PROGRAM))} --local-timezone Europe/Oslo"
HOURS = {"source_timezone": "Europe/Oslo", "time": "14:30", "target_timezone": "Asia/Tokyo"}

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="it is not installed: make clients")


@pytest.fixture(scope="module")
def timed():
    with scripted_server(COMMAND) as server:
        yield server


def test_a_call_of_chat_completions(timed):
    timed(call("convert_time", json.dumps(HOURS)), final("Half past nine at night."))
    client = openai.OpenAI(base_url=timed.url, api_key="none", max_retries=0)
    question = [{"role": "user", "content": "14:30 in Oslo is when in Tokyo?"}]
    (choice,) = client.chat.completions.create(model=timed.model, messages=question).choices
    assert (choice.message.content, choice.finish_reason) == ("Half past nine at night.", "stop")
    (called,) = choice.message.server_tool_calls
    assert (called["server_label"], called["is_error"]) == ("time", False)
    assert json.loads(called["output"])["target"]["timezone"] == "Asia/Tokyo"
    first, second = timed.prompts
    assert "type convert_time = (_: {" in first
    assert "type get_current_time = (_: {" in first
    assert "Europe/Oslo" in first  # of its description, and so of its option
    assert called["output"] in second


def test_calls_and_an_error_in_the_events_of_responses(timed):
    nowhere = json.dumps({"timezone": "Nowhere/Land"})
    timed(
        call("get_current_time", json.dumps({"timezone": "Asia/Tokyo"})),
        call("get_current_time", nowhere),
        final("Evening."),
    )
    client = openai.OpenAI(base_url=timed.url, api_key="none", max_retries=0)
    with client.responses.stream(model=timed.model, input="What time is it?") as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds.count("response.mcp_call.in_progress") == 2
    assert response.output_text == "Evening."
    listed, *rest = response.output
    assert {tool.name for tool in listed.tools} == {"get_current_time", "convert_time"}
    told, refused = (item for item in rest if item.type == "mcp_call")
    assert (told.server_label, told.name, told.error) == ("time", "get_current_time", None)
    assert json.loads(told.output)["timezone"] == "Asia/Tokyo"
    assert "Nowhere/Land" in str(refused.error)
    assert "Nowhere/Land" in timed.prompts[-1]


def test_ossia_serve_runs_it_for_the_model_in_the_package():
    with stdlib_server("--mcp", COMMAND) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        response = client.responses.create(
            model=server.model,
            input="What time is it in Europe/Oslo?",
            tool_choice="required",
            max_output_tokens=500,
            temperature=0,
        )
    calls = [item for item in response.output if item.type == "mcp_call"]
    assert calls, response.output
    for item in calls:  # whatever so small a model asks for
        assert item.server_label == "time"
        assert item.output or item.error, "it was not run"
