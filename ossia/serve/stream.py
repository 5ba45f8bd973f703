"""Server-sent events: chunks as they are made, then [DONE]; an error in between ends them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from ossia.serve.errors import failure
from ossia.serve.service import Running


def event_stream(running: Running, chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """The response that sends each chunk as it is made; ended with the client's connection."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # for proxies
    return StreamingResponse(
        _written(running, chunks), media_type="text/event-stream", headers=headers
    )


async def _written(running: Running, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async with running.held():
            async for chunk in chunks:
                yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the status was sent long ago
        yield _event(failure(error).body())


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
