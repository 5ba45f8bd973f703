"""Any JSON under any key of any endpoint is answered or refused: it never makes the server fail."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import ANSWER

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
