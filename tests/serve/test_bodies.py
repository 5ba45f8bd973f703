"""Large bodies, which are read in a thread: they are answered and refused as small ones are."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.serve.conftest import ANSWER, Served

pytest.importorskip("fastapi")

from ossia.serve import bodies

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Why?"}]
CALLED = {"type": "item_reference", "id": "item_none"}
SEALED = {"type": "reasoning", "summary": [], "encrypted_content": "nothing"}
# Of each endpoint, a body that it takes, and changes that it does not.
BODIES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    CHAT: (
        {"model": "tiny", "messages": QUESTION},
        [
            {"messages": [*QUESTION, {"role": "boss", "content": "?"}]},
            {"messages": [*QUESTION, {"role": "user", "content": [{"type": "x"}] * 9}]},
            {"temperature": "0.7", "top_p": 7},
            {"what": 1},
            {"xray": True},
            {"stop": ""},
            {"model": "other"},
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "x"},
        ],
    ),
    "/v1/completions": ({"model": "tiny", "prompt": "?"}, [{"prompt": []}, {"n": 0}]),
    "/v1/responses": (
        {"model": "tiny", "input": "?"},
        [{"input": [*QUESTION, CALLED]}, {"input": [SEALED]}, {"tools": [{"type": "x"}]}],
    ),
    "/v1/messages": (
        {"model": "tiny", "max_tokens": 9, "messages": QUESTION},
        [{"messages": []}, {"max_tokens": None}, {"thinking": {"type": "x"}}],
    ),
    "/v1/tokenize": ({"messages": QUESTION}, [{"prompt": "?"}, {"tools": 1}]),
    "/v1/detokenize": ({"tokens": [1, 2]}, [{"tokens": [1, 999]}, {"tokens": ["1"]}]),
}
RAW = [b"[1]", b"7", b"{", b'{"model": "\xff"}', b"[" * 100_000, b'{"a": NaN}', b"null"]


@pytest.fixture
def large(monkeypatch) -> list[int]:
    """Have every body be a large one. Returns the threads in which one was parsed."""
    threads: list[int] = []
    parsed = bodies.parsed

    def noted(body: bytes) -> Any:
        threads.append(threading.get_ident())
        return parsed(body)

    monkeypatch.setattr(bodies, "AT_ONCE", -1)
    monkeypatch.setattr(bodies, "parsed", noted)
    return threads


def refusals(served: Served) -> list[tuple[int, Any]]:
    """What the server says to all that it does not take."""
    told = []
    for path, (good, changes) in BODIES.items():
        told += [served.post(path, good | change) for change in changes]
        told += [served.post(path, data) for data in RAW]
        told.append(served.post(path, good, **{"Content-Type": "text/plain"}))
    return told


def test_what_is_refused_of_a_small_body_is_refused_of_a_large_one(serve, request):
    small = refusals(serve())
    threads = request.getfixturevalue("large")
    assert refusals(serve()) == small
    assert all(400 <= status < 500 for status, _ in small)
    assert threads


@pytest.mark.parametrize("path", BODIES)
def test_a_large_body_is_read_away_from_the_loop(serve, large, path):
    served, loop = serve(ANSWER), []
    check = served.service.check_model

    def checked(name: str) -> None:
        loop.append(threading.get_ident())
        check(name)

    served.service.check_model = checked
    body, _ = BODIES[path]
    assert served.post(path, body | {"model": "tiny"})[0] == 200
    assert len(loop) == len(large) == 1
    assert loop != large


def test_the_request_of_a_large_body_is_the_same(serve, large):
    served = serve(ANSWER, ANSWER)
    content = [{"type": "text", "text": f"{n} "} for n in range(500)]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "seed": 5}
    assert served.post(CHAT, body)[0] == 200
    assert "".join(f"{n} " for n in range(500)) in served.prompt()
    assert served.engine.requests[0].sampling.seed == 5
    large.clear()
    twice = json.dumps(body)[:-1] + ', "seed": 7}'  # the last of a name counts
    assert served.post(CHAT, twice.encode())[0] == 200
    assert served.engine.requests[1].sampling.seed == 7
