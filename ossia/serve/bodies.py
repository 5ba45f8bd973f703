"""Bodies of requests: a large one is parsed and validated in a thread, so that others are served
meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

AT_ONCE = 2**16  # bytes of a body that take a few milliseconds, less than a thread is worth


class Invalid(HTTPException):
    """A large body that is JSON, but no request. errors: what is wrong, as FastAPI finds it."""

    def __init__(self, errors: Sequence[Any]) -> None:
        super().__init__(400)
        self.errors = errors


class BodyRoute(APIRoute):
    """A route whose large bodies do not hold the event loop."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, field = super().get_route_handler(), self.body_field
        if field is None:
            return handle

        class Read(Request):
            async def json(self) -> Any:
                """What the body holds; of a large one, the request itself."""
                body = await self.body()
                if len(body) <= AT_ONCE:
                    return await super().json()
                request, errors = await asyncio.to_thread(
                    lambda: field.validate(parsed(body), {}, loc=("body",))
                )
                if errors:
                    raise Invalid(errors)
                return request

        async def handle_read(request: Request) -> Response:
            return await handle(Read(request.scope, request.receive))

        return handle_read


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises as `json.loads`.

    That would let no other thread run before its end. A function that is called for each object
    does.
    """
    return json.loads(body, object_pairs_hook=lambda pairs: dict(pairs))
