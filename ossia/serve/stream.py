"""Server-sent events: chunks as they are made, then [DONE], or events by their names; an error in
between ends them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

from ossia.serve.errors import failure
from ossia.serve.service import Running


def documented(what: str, schema: str | None = None) -> dict[int | str, dict[str, Any]]:
    """An endpoint's answer in the OpenAPI document, whole or as events. schema: the name of that of
    each event's data.
    """
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}
    if schema is not None:
        data["contentSchema"] = {"$ref": f"#/components/schemas/{schema}"}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {200: {"description": what, "content": {"text/event-stream": {"schema": event}}}}


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The response that sends each event as it is made; ended with the client's connection."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # for proxies
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def chunk_stream(running: Running, chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """The response that sends each chunk, and an error in OpenAI's shape."""
    return event_stream(_written(running, chunks))


def named_event(event: Mapping[str, Any]) -> bytes:
    """An event under the name that is its type."""
    return f"event: {event['type']}\n".encode() + _event(event)


async def _written(running: Running, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async with running.held():
            async for chunk in chunks:
                yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the status was sent long ago
        yield _event(failure(error).body())


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
