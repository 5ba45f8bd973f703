"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ossia.serve.bodies import BodyRoute
from ossia.serve.errors import MESSAGES, ApiError, failure, json_response
from ossia.serve.messages.answer import PING, Answer, Told
from ossia.serve.messages.chat import prepared
from ossia.serve.messages.wire import AnthropicError, CountRequest, MessagesRequest
from ossia.serve.service import Running, Service, unless_disconnected
from ossia.serve.stream import documented, event_stream, named_event

PARAMETERS = tuple(MessagesRequest.model_fields)
PING_SECONDS = 10.0  # of silence, after which a stream says that it goes on


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    error = {"model": AnthropicError, "description": "What is wrong, in Anthropic's shape."}
    router = APIRouter(prefix=MESSAGES, route_class=BodyRoute, responses={"default": error})

    told = documented("The message; with stream: true, its parts as server-sent events.")

    @router.post("", response_model=dict[str, Any], responses=told)
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        service.check_model(body.model)
        _check_thread(body)
        ask = await service.prepare(lambda: prepared(service.llm, body), PARAMETERS)
        answer = Answer(body, service.name, len(ask.request.prompt))
        running = service.start([ask], 1, PARAMETERS)
        if body.stream:
            return event_stream(_written(answer, running))
        return await unless_disconnected(request, _whole(answer, running))

    @router.post("/count_tokens", response_model=dict[str, Any])
    async def count_tokens(body: CountRequest) -> Response:
        """The tokens of the prompt that a request would make."""
        service.check_model(body.model)
        ask = await service.prepare(lambda: prepared(service.llm, body), PARAMETERS)
        return json_response({"input_tokens": len(ask.request.prompt)})

    return router


def _check_thread(body: MessagesRequest) -> None:
    """Refuse to hold a conversation between requests, by the code after which Anthropic's client
    sends whole conversations.
    """
    if body.thread is not None:
        message = "thread: this server holds no conversations; send all messages"
        raise ApiError(400, message, param="thread", code="thread_unsupported_request")


async def _whole(answer: Answer, running: Running) -> Response:
    async with running.held():
        async for _ in answer.events(running):
            pass
    return json_response(answer.message)


async def _written(answer: Answer, running: Running) -> AsyncIterator[bytes]:
    try:
        async with running.held():
            async for event in _with_pings(answer.events(running)):
                yield named_event(event)
    except Exception as error:  # the status was sent long ago
        yield named_event(failure(error).anthropic_body())


async def _with_pings(events: AsyncIterator[Told]) -> AsyncIterator[Told]:
    """The events, and a ping after each silence: while a request waits, and while a model thinks
    or writes a call.
    """
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait((following,), timeout=PING_SECONDS)
            if not done:
                yield PING
                continue
            event = following.result()
            if event is None:
                return
            yield event
            following = asyncio.ensure_future(anext(events, None))
    finally:
        following.cancel()
