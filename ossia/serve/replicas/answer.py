"""A request on its way to a replica, and the answer on its way to the client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine
from typing import Any

from starlette.exceptions import HTTPException

from ossia.serve import bodies
from ossia.serve.errors import MESSAGES, ApiError
from ossia.serve.gate import Message, Receive, Send
from ossia.serve.replicas.replica import Asked

RESPONSES = "/v1/responses"

# The client's key was checked and the body was decoded here.
_KEPT_BACK = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
    )
)

_IDS = (b"x-request-id", b"request-id")  # the client gets the front end's


# The events by which a stream opens before anything was generated.
_OPENING = re.compile(
    rb"event: (response\.created|response\.in_progress|message_start|ping)\n|"
    rb'data: .*"delta":\{"role":"assistant","content":""\}'
)


_PING = b"event: ping\n"


class Answer:
    """What a client gets, held back while another replica could still give it: a stream up to what
    follows its opening, anything else to its end. made: the id of the response that a body begins
    with.
    """

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self._held: list[Message] = []
        self._streams = False
        self.begun = self.done = False
        self.may_refuse = True  # whether a full queue is the answer
        self.made: str | None = None

    async def take(self, message: Message) -> bool:
        """Send a message, or hold it; whether the client has received something."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            message["headers"] = [pair for pair in message["headers"] if pair[0] not in _IDS]
            self._held.append(message)
            return False
        body, self.done = message.get("body", b""), not message.get("more_body", False)
        if self._path == RESPONSES and self.made is None:
            self.made = _response(body)
        if not (self.begun or self.done) and (not self._streams or self._opens(body)):
            self._held.append(message)
            return False
        self.begun = True
        for one in (*self._held, message):
            await self._send(one)
        self._held.clear()
        return True

    def _opens(self, body: bytes) -> bool:
        """Whether a part of a stream tells of nothing that was generated. A second ping goes out:
        the client has waited for long.
        """
        pings = sum(one.get("body", b"").startswith(_PING) for one in self._held)
        return not body or bool(_OPENING.match(body) and not (body.startswith(_PING) and pings))

    def forget(self) -> None:
        """Drop what a replica began to say that has died."""
        self._held.clear()

    async def broken(self) -> None:
        """End a stream that cannot go on, with an error in the endpoint's shape."""
        self.done = True
        error = ApiError(500, "the replica that wrote this answer died", code="replica_lost")
        if self._path == RESPONSES:
            body = {"type": "error", "code": error.code, "message": error.message, "param": None}
            name = b"event: error\n"
        elif self._path.startswith(MESSAGES):
            body, name = error.anthropic_body(), b"event: error\n"
        else:
            body, name = error.body(), b""
        event = name + b"data: " + json.dumps(body).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event})


def _response(body: bytes) -> str | None:
    """The id of the response that a body is, or that its event tells of."""
    try:
        told = json.loads(body[body.find(b"{") :])
    except (ValueError, RecursionError):
        return None
    return told.get("response", told).get("id")


async def read(scope: Message, receive: Receive) -> Asked:
    """A request with its whole body. Raises what `receive` raises for one that is too large."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(499, "the client hung up")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in _KEPT_BACK]
    headers.append((b"content-length", str(len(body)).encode()))
    path = scope.get("raw_path") or scope["path"].encode()
    return Asked(scope["method"], path, scope["query_string"], headers, body)


def parsed(asked: Asked) -> dict[str, Any]:
    """The JSON object that is asked with; empty for anything else, which a replica refuses."""
    try:
        body = bodies.parsed(asked.body)
    except (ValueError, RecursionError):
        return {}
    return body if asked.method == "POST" and isinstance(body, dict) else {}


async def unless_hung_up(receive: Receive, answer: Answer, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which is cancelled if the client hangs up before it has its answer."""
    task, gone = asyncio.create_task(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done or task.done():
            await task
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
