"""/v1/responses: create, whole or streamed; retrieve and delete one that was kept."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from ossia.api import Ask, Finished
from ossia.serve.errors import ApiError, failure, json_response
from ossia.serve.responses.items import Items, OutputItems, messages, new_id
from ossia.serve.responses.store import ResponseStore
from ossia.serve.responses.wire import FunctionTool, ResponseRequest, WebSearchTool
from ossia.serve.service import Running, Service, unless_disconnected

PARAMETERS = (*ResponseRequest.model_fields, "messages")

_log = logging.getLogger(__name__)


def routes(service: Service, store: ResponseStore) -> APIRouter:
    """The endpoints over a service, whose responses go to `store`."""
    router = APIRouter(prefix="/v1/responses")

    async def kept(id: str, param: str | None = None) -> tuple[dict[str, Any], Items]:
        found = await asyncio.to_thread(store.get, id)
        if found is None:
            raise ApiError(404, f"there is no response '{id}'", param=param, code="not_found")
        return found

    @router.post("", response_model=dict[str, Any])
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        service.check_model(body.model)
        _check_tools(service, body)
        items = _input(body)
        if body.previous_response_id is not None:
            earlier, before = await kept(body.previous_response_id, "previous_response_id")
            items = [*before, *earlier["output"], *items]
        ask = await service.prepare(lambda: _ask(service, body, items), PARAMETERS)
        answer = _Answer(service, store, body, items)
        running = service.start([ask], 1, PARAMETERS)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            written = answer.written(running)
            return StreamingResponse(written, media_type="text/event-stream", headers=headers)
        return await unless_disconnected(request, answer.whole(running))

    @router.get("/{id}", response_model=dict[str, Any])
    async def retrieve_response(id: str, request: Request) -> Response:
        for name in request.query_params:
            raise ApiError(400, f"Unsupported parameter: '{name}'.", param=name)
        return json_response((await kept(id))[0])

    @router.delete("/{id}", response_model=dict[str, Any])
    async def delete_response(id: str) -> Response:
        if not await asyncio.to_thread(store.delete, id):
            raise ApiError(404, f"there is no response '{id}'", code="not_found")
        return json_response({"id": id, "object": "response", "deleted": True})

    return router


def _check_tools(service: Service, body: ResponseRequest) -> None:
    """Log what the model is not offered. Raises ApiError as `Service.check_calls`."""
    if any(isinstance(tool, WebSearchTool) for tool in body.tools):
        _log.info("a request names the tool web_search, which the model is not offered")
    if body.functions():
        service.check_calls(body.parallel_tool_calls)


def _input(body: ResponseRequest) -> Items:
    """The items of the input, each with an id."""
    if isinstance(body.input, str):
        part = {"type": "input_text", "text": body.input}
        return [{"type": "message", "id": new_id("msg"), "role": "user", "content": [part]}]
    items = [item.model_dump(exclude_unset=True) for item in body.input]
    return [{"type": "message", "id": new_id("item")} | item for item in items]


def _ask(service: Service, body: ResponseRequest, items: Items) -> Ask:
    effort = body.reasoning.effort
    tools = [_function(tool) for tool in body.functions()]
    return service.llm.prepare(
        messages(items),
        tools or None,
        None if effort == "none" else effort,
        effort != "none",
        instructions=body.instructions,
        tool_choice=body.tool_choice if tools else None,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
    )


def _function(tool: FunctionTool) -> dict[str, Any]:
    """The function in Chat Completions' form."""
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_unset=True)}


class _Answer:
    """The response to one request, whole or as events."""

    def __init__(
        self, service: Service, store: ResponseStore, body: ResponseRequest, items: Items
    ) -> None:
        self._store, self._body, self._input = store, body, items
        self._items = OutputItems(body.namespaces())
        given = body.model_dump(include=set(_ECHOED))
        self._response = {
            **given,
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": service.name,
            "output": [],
            "text": {"format": {"type": "text"}},
            "tools": [tool.model_dump() for tool in body.tools],
            "usage": None,
        }

    async def whole(self, running: Running) -> Response:
        async with running.held():
            async for _ in self._events(running):
                pass
        return json_response(self._response)

    async def written(self, running: Running) -> AsyncIterator[bytes]:
        """The events as they are sent."""
        number = 0
        try:
            async with running.held():
                async for event in self._events(running):
                    yield _written(event, number)
                    number += 1
        except Exception as error:  # the status was sent long ago
            told = failure(error)
            self._response |= {"status": "failed", "output": self._items.items}
            self._response["error"] = {"code": "server_error", "message": told.message}
            yield _written({"type": "response.failed", "response": self._response}, number)

    async def _events(self, running: Running) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "response.created", "response": dict(self._response)}
        yield {"type": "response.in_progress", "response": dict(self._response)}
        async for _, event in running.events():
            if not isinstance(event, Finished):
                for told in self._items.read(event):
                    yield told
                continue
            status = "incomplete" if event.reason == "length" else "completed"
            for told in self._items.close(status):
                yield told
            await self._end(status, event)
            yield {"type": f"response.{status}", "response": self._response}

    async def _end(self, status: str, end: Finished) -> None:
        """Complete the response, and keep it before anybody is told."""
        self._response |= {"status": status, "output": self._items.items}
        if status == "incomplete":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response["usage"] = {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }
        if self._body.store:
            await asyncio.to_thread(self._store.put, self._response, self._input)


_ECHOED = (
    "background",
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "store",
    "temperature",
    "tool_choice",
    "top_p",
    "truncation",
    "user",
)


def _written(event: dict[str, Any], number: int) -> bytes:
    data = json.dumps({**event, "sequence_number": number}, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {data}\n\n".encode()
