"""What the Codex command line sends, as it was recorded, and how it reads the answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.serve.conftest import Served

pytest.importorskip("fastapi")

RECORDED = Path(__file__).parent.parent / "fixtures" / "clients" / "codex-0.171-requests.json"
RUN = (
    "<|channel|>analysis<|message|>I write it.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.exec_command <|constrain|>json<|message|>{"cmd": "echo hello > made.txt"}<|call|>'
)
SPAWN = (
    '<|channel|>commentary to=NAME <|constrain|>json<|message|>{"message": "Look around"}<|call|>'
)
DONE = "<|channel|>final<|message|>made.txt is there.<|return|>"


@pytest.fixture
def requests() -> list[dict]:
    return [
        request | {"model": "tiny"} for request in json.loads(RECORDED.read_text(encoding="utf-8"))
    ]


def events(served: Served, body: dict) -> list[dict]:
    """The events that answer a request."""
    connection = served.connect()
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    connection.request("POST", "/v1/responses", json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200, text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(part.split("\ndata: ")[1]) for part in text.split("\n\n")[:-1]]


def items(told: list[dict]) -> list[dict]:
    return [event["item"] for event in told if event["type"] == "response.output_item.done"]


def test_a_task_as_it_was_recorded(serve, requests, caplog):
    caplog.set_level(logging.INFO, "ossia")
    served = serve(RUN, DONE)
    told = events(served, requests[0])
    assert told[-1]["type"] == "response.completed"
    assert told[-1]["response"]["usage"]["output_tokens"] > 0
    reasoning, call = items(told)
    assert (call["type"], call["name"], call["status"]) == (
        "function_call",
        "exec_command",
        "completed",
    )
    assert json.loads(call["arguments"]) == {"cmd": "echo hello > made.txt"}
    assert "namespace" not in call
    prompt = served.prompt()
    for part in ("(16979 characters)", "Create made.txt", "type exec_command", "cmd: string"):
        assert part in prompt
    assert "web_search" not in prompt
    assert caplog.text.count("the tool web_search, which the model is not offered") == 1

    # The second request is the first, what the server answered, and the result of its call.
    output = requests[1]["input"][-1] | {"call_id": call["call_id"]}
    said = [reasoning | {"content": None}, call]
    body = requests[1] | {"input": [*requests[0]["input"], *said, output]}
    told = events(served, body)
    assert items(told)[-1]["content"][0]["text"] == "made.txt is there."
    prompt = served.prompt()
    for part in ("I write it.", '{"cmd": "echo hello > made.txt"}', "Wall time"):
        assert part in prompt


def test_the_second_request_as_it_was_recorded(serve, requests):
    served = serve(DONE)
    told = events(served, requests[1])
    assert told[-1]["response"]["status"] == "completed"
    assert "functions.exec_command to=assistant" in served.prompt()


@pytest.mark.parametrize(
    "name",
    [
        "functions.multi_agent_v1__spawn_agent",
        "functions.spawn_agent",
        "multi_agent_v1.spawn_agent",
        "functions.multi_agent_v1.spawn_agent",
    ],
)
def test_a_function_of_a_namespace_comes_back_as_codex_reads_it(serve, requests, name):
    """Codex makes a ToolName of the two fields of a function_call item, namespace and name."""
    served = serve(SPAWN.replace("NAME", name), DONE)
    (call,) = items(events(served, requests[0]))
    assert (call["namespace"], call["name"]) == ("multi_agent_v1", "spawn_agent")
    assert "type multi_agent_v1__spawn_agent" in served.prompt()
    assert "type spawn_agent" not in served.prompt()
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "It looks."}
    events(served, requests[0] | {"input": [*requests[0]["input"], call, output]})
    assert "to=functions.multi_agent_v1__spawn_agent" in served.prompt()
    assert "functions.multi_agent_v1__spawn_agent to=assistant" in served.prompt()


def test_two_namespaces_may_have_functions_of_one_name(serve, requests):
    first = requests[0]["tools"][4]
    assert first["type"] == "namespace"
    second = first | {"name": "other", "description": "Others."}
    body = requests[0] | {"tools": [first, second]}
    served = serve(*[SPAWN.replace("NAME", f"functions.{n}") for n in ("other__spawn_agent", "x")])
    (call,) = items(events(served, body))
    assert (call["namespace"], call["name"]) == ("other", "spawn_agent")
    assert "Others." in served.prompt()
    (call,) = items(events(served, body))
    assert (call.get("namespace"), call["name"]) == (None, "x")
