"""What stands before every request: API keys, the size of bodies, and a line in the log.

Plain ASGI, so that a refused request's body is never read, and streams pass as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, Protocol

from starlette.exceptions import HTTPException

from ossia.serve.compressed import decoded, encoding
from ossia.serve.errors import ApiError
from ossia.serve.limits import OWNER
from ossia.serve.page import FILES as PAGE
from ossia.system.memory import format_size

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

REQUEST_IDS = ("x-request-id", "request-id")  # OpenAI's and Anthropic's

# Without a key: what load balancers ask, and the page, which asks its user for one.
OPEN = frozenset(("/health", "/ready", *PAGE))
# What browsers and probes fetch by themselves, dozens at a time or every few seconds.
ROUTINE = OPEN | {"/metrics"}

_log = logging.getLogger(__name__)


class Gate:
    """An ASGI application around another. Without keys everybody may come in. max_body: the most
    bytes of a body. seconds: within which it must have arrived.
    """

    def __init__(
        self, app: Asgi, keys: Collection[str], max_body: int, seconds: float | None = None
    ) -> None:
        self._app, self._max_body, self._seconds = app, max_body, seconds
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, receive = dict(scope["headers"]), self._bounded(receive)
        try:
            self._check(scope["path"], headers)
            if (coding := encoding(headers.get(b"content-encoding", b""))) is not None:
                receive = decoded(receive, coding, self._max_body)
        except ApiError as error:
            return await error.response(scope["path"])(scope, receive, send)
        return await self._app(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Note whose request it is. Raises ApiError for one that may not come in."""
        owner = self._owner(headers)
        OWNER.set(owner)
        if self._keys and path not in OPEN and owner is None:
            raise ApiError(
                401,
                "a valid API key is needed, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                code="invalid_api_key",
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_body:
            raise ApiError(413, self._too_large())

    def _owner(self, headers: dict[bytes, bytes]) -> int | None:
        """The place of the request's key among the server's, found in a time that depends on
        neither; None for no such key.
        """
        digest = _digest(_key(headers))
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        return matches.index(True) if any(matches) else None

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, which refuses a body that turns out too large, or takes too long."""
        read, whole = 0, False
        end = None if self._seconds is None else asyncio.get_running_loop().time() + self._seconds

        async def bounded() -> Message:
            nonlocal read, whole
            try:
                async with asyncio.timeout_at(None if whole else end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not arrive within {self._seconds:g} s"
                ) from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._max_body:
                raise HTTPException(413, self._too_large())
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the body is larger than the {format_size(self._max_body)} that this server takes"


def _key(headers: dict[bytes, bytes]) -> bytes:
    """The key that a request brings, as OpenAI's clients send it or as Anthropic's do."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return key.strip()
    return headers.get(b"x-api-key", b"").strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Counts(Protocol):
    """What counts responses."""

    def responded(self, path: str, status: int, seconds: float, /) -> None: ...


class AccessLog:
    """An ASGI application around another, which logs and counts its responses: never their
    content, nor that of requests. Of `ROUTINE` requests only those that fail stand in the log.
    """

    def __init__(self, app: Asgi, metrics: Counts) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, id = time.perf_counter(), 499, f"req_{uuid.uuid4().hex}"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ids = [(name.encode(), id.encode()) for name in REQUEST_IDS]
                message["headers"] = [*message.get("headers", ()), *ids]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            known = getattr(scope.get("route"), "path", "other")  # with {id} for an id
            self._metrics.responded(known, status, seconds)
            path = scope["path"][:200].encode("unicode_escape").decode()  # one line, whatever it is
            _log.log(
                logging.DEBUG if path in ROUTINE and status < 400 else logging.INFO,
                "%s %s %d %.3f s %s",
                scope["method"],
                path,
                status,
                seconds,
                id,
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "request_id": id,
                },
            )
