"""An endpoint whose replies, errors and hang-ups a test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the endpoint does with a request: a completion, or an error's status; `cut` ends the
    connection midway, `hang` seconds pass before.
    """

    content: str = ""
    reasoning: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    prompt: int = 100
    cached: int = 0
    completion: int = 10
    reasoning_tokens: int = 0
    finish: str = "stop"
    calls: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    hang: float = 0.0
    error: str = "scripted"

    def body(self) -> bytes:
        if self.status != 200:
            return json.dumps({"error": {"message": self.error}}).encode()
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": f"c{i}", "type": "function", "function": {"name": n, "arguments": a}}
                for i, (n, a) in enumerate(self.calls)
            ]
        usage = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed, or gave up, is no error."""


Script = Callable[[dict[str, Any]], Answer]


class ScriptedEndpoint:
    """bodies, keys: of all requests, in the order in which they came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                endpoint.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.server = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def questions(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            self.bodies.append(body)
            self.keys.append(request.headers.get("Authorization"))
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            answer = self.script(body)
        time.sleep(answer.hang)
        with self._lock:
            self._now -= 1
        data = answer.body()
        request.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if answer.cut else data)
        request.close_connection = answer.cut


@contextmanager
def serving(script: Script) -> Iterator[ScriptedEndpoint]:
    endpoint = ScriptedEndpoint(script)
    thread = threading.Thread(
        target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
        thread.join()
