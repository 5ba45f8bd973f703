"""Any JSON under any key of any endpoint is answered or refused: it never makes the server fail."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import ANSWER

pytest.importorskip("fastapi")

from pydantic import BaseModel, ValidationError

from ossia.serve.chat_wire import ChatRequest
from ossia.serve.completions import CompletionRequest
from ossia.serve.messages.wire import CountRequest, MessagesRequest
from ossia.serve.responses.wire import ResponseRequest
from ossia.serve.tokens import DetokenizeRequest, TokenizeRequest

VALUES: tuple[Any, ...] = (
    *(True, 2**70, "\\ud800", [], {}, [[]], [{"type": []}], {"type": [None]}),
    [{"role": "tool", "content": [[]]}],
)


def bodies(document: dict[str, Any]) -> list[tuple[str, dict[str, Any], list[str]]]:
    """The path of each endpoint that takes a body, a body that it takes, and the keys it knows."""
    found = []
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        if "{" in path or "application/json" not in content:
            continue
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
        known = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "?"}],
            "input": "?",
            "prompt": "?",
            "max_tokens": 8,
            "tokens": [1],
        }
        required = {key: known[key] for key in schema.get("required", ())}
        if path == "/v1/tokenize":
            required["prompt"] = "?"
        found.append((path, required, list(schema["properties"])))
    return found


def test_any_json_is_answered_or_refused(serve):
    served = serve(*[ANSWER] * 4000)
    endpoints = bodies(json.loads(served.get("/openapi.json")[1]))
    assert len(endpoints) >= 5
    connection = served.connect()
    answered = 0
    for path, required, keys in endpoints:
        for key in keys:
            for value in VALUES:
                body = json.dumps({**required, key: value})
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                told = response.read()
                assert response.status < 500, (path, key, value, told)
                if response.status == 200:
                    answered += 1
                else:
                    assert "error" in json.loads(told), (path, key, value)
    assert answered > len(endpoints)


@pytest.mark.parametrize("body", [b"[]", b"7", b'"x"', b"null", b"{", b"\xff", b"{}" * 2, b""])
def test_bodies_that_are_no_objects_are_400(serve, body):
    served = serve()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        status, told = served.post(path, body)
        assert (status, told["error"]["type"]) == (400, "invalid_request_error")


def test_ids_that_no_text_has_are_404(serve):
    served = serve()
    connection = served.connect()
    for method in ("GET", "DELETE"):
        for id in ("%FF", "%ED%A0%80", "%00", "'"):
            connection.request(method, f"/v1/responses/{id}")
            response = connection.getresponse()
            assert (response.status, "error" in json.loads(response.read())) == (404, True), id


REQUESTS: tuple[type[BaseModel], ...] = (
    *(ChatRequest, CompletionRequest, ResponseRequest, MessagesRequest, CountRequest),
    *(TokenizeRequest, DetokenizeRequest),
)
WRONG = (
    [0] * 999,
    ["x"] * 999,
    [{}] * 999,
    [[0.5]] * 999,
    [{"role": "user", "type": "function", "content": [0] * 999, "tools": [0] * 999}],
    {str(n): [] for n in range(999)},
    {str(n): "1" for n in range(999)},
)


def errors(request_type: type[BaseModel], body: Any) -> int:
    """How many mistakes of a body would be reported."""
    try:
        request_type.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("request_type", REQUESTS)
def test_a_body_of_many_mistakes_has_few_errors(request_type):
    """Each takes about a kilobyte, and a body can hold millions of mistakes."""
    counts = {
        (name, n): errors(request_type, {name: value})
        for name in [*request_type.model_fields, "unknown"]
        for n, value in enumerate(WRONG)
    }
    assert max(counts.values()) < 50, counts
    assert 0 < errors(request_type, {f"x{n}": n for n in range(999)}) < 10


def test_the_first_mistake_of_many_is_the_one_that_is_told(serve):
    served = serve()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "?"}, *[{"role": 0}] * 999]}
    status, told = served.post("/v1/chat/completions", body)
    assert (status, told["error"]["param"]) == (400, "messages[1].role")
    body = {"model": "tiny", "prompt": "?", "logit_bias": {"1": 1, "x": 1, "y": 1}}
    status, told = served.post("/v1/completions", body)
    assert (status, told["error"]["param"]) == (400, "logit_bias.x")
    body = {
        "model": "tiny",
        "prompt": "?",
        "what": 1,
        "where": 1,
        **{f"n{n}": 1 for n in range(99)},
    }
    status, told = served.post("/v1/completions", body)
    assert (status, told["error"]["message"]) == (400, "Unsupported parameter: 'what'.")


def test_stop_strings_are_few(serve):
    served = serve()
    for path, name in (("/v1/completions", "stop"), ("/v1/messages", "stop_sequences")):
        body = {"model": "tiny", "max_tokens": 1, name: ["x"] * 129}
        body |= (
            {"prompt": "?"} if name == "stop" else {"messages": [{"role": "user", "content": ""}]}
        )
        status, told = served.post(path, body)
        assert (status, "at most 128" in told["error"]["message"]) == (400, True)
