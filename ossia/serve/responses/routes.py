"""/v1/responses: create, whole, streamed or in the background; what was kept, and its input."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ossia.api import Ask
from ossia.errors import OssiaError
from ossia.serve.bodies import BodyRoute
from ossia.serve.errors import ApiError, json_response
from ossia.serve.responses.answer import Answer, Asked, Event
from ossia.serve.responses.background import Background
from ossia.serve.responses.fitting import fitted
from ossia.serve.responses.items import Items, item_id, messages, new_id, response_of
from ossia.serve.responses.listing import page
from ossia.serve.responses.seal import Seal
from ossia.serve.responses.store import Kept, Store
from ossia.serve.responses.tools import Offered, flat_name
from ossia.serve.responses.wire import (
    CodeInterpreterTool,
    Includable,
    ResponseRequest,
    WebSearchTool,
)
from ossia.serve.rounds import Dialogue, Messages
from ossia.serve.service import Running, Service, unless_disconnected
from ossia.serve.stream import documented, event_stream, named_event
from ossia.serve.structure_wire import as_sent, later_choice
from ossia.text import TooLong

PARAMETERS = (*ResponseRequest.model_fields, "messages")

_log = logging.getLogger(__name__)


def routes(service: Service, store: Store) -> APIRouter:
    """The endpoints over a service, whose responses go to `store`."""
    router = APIRouter(prefix="/v1/responses", route_class=BodyRoute)
    endpoints = _Endpoints(service, store)
    for path, method, endpoint in (
        ("", "POST", endpoints.create_response),
        ("/{id}", "GET", endpoints.retrieve_response),
        ("/{id}", "DELETE", endpoints.delete_response),
        ("/{id}/cancel", "POST", endpoints.cancel_response),
        ("/{id}/input_items", "GET", endpoints.list_input_items),
    ):
        streams = endpoint in (endpoints.create_response, endpoints.retrieve_response)
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=dict[str, Any],
            responses=documented("The response; with stream, its events.") if streams else None,
        )
    return router


class _Endpoints:
    def __init__(self, service: Service, store: Store) -> None:
        self._service, self._store = service, store
        self._seal = Seal(store.key)
        self._background = Background(store, service.tasks)
        gauge = service.metrics.gauge
        gauge(
            "background_responses", "Responses that run in the background.", self._background.count
        )
        gauge("kept_responses", "Responses that are kept.", lambda: store.size()[0])
        gauge("kept_bytes", "Bytes of the responses that are kept.", lambda: store.size()[1])

    async def create_response(self, body: ResponseRequest, request: Request) -> Response:
        service = self._service
        service.check_model(body.model)
        _check_tools(service, body)
        asked = await self._read(body)
        dialogue, ask = await service.open(lambda: _dialogue(service, asked), PARAMETERS)
        answer = Answer(service, asked)
        running = service.converse(dialogue, ask, 1, PARAMETERS)
        if body.background:
            await self._background.start(answer, running)
            if body.stream:
                return await self._followed(asked.id, -1)
            return json_response(answer.response())
        if body.stream:
            return event_stream(self._written(answer, running))
        return await unless_disconnected(request, self._whole(answer, running))

    async def retrieve_response(
        self,
        id: str,
        request: Request,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """With stream, the events of a response in the background, from the first or after one."""
        include = _check_query(request, "stream", "starting_after")
        if stream:
            return await self._followed(id, -1 if starting_after is None else starting_after)
        if starting_after is not None:
            raise ApiError(400, "starting_after is only for stream: true", param="starting_after")
        response = (await self._kept(id)).response
        return json_response(response | {"output": self._with(include, response["output"])})

    async def delete_response(self, id: str) -> Response:
        """A response that runs is cancelled first."""
        await self._background.cancel(id)
        if not await asyncio.to_thread(self._store.delete, id):
            raise _missing(id)
        return json_response({"id": id, "object": "response", "deleted": True})

    async def cancel_response(self, id: str) -> Response:
        """End a response that runs in the background; one that has ended stays as it is."""
        if not (await self._kept(id)).response["background"]:
            raise ApiError(400, f"the response '{id}' was not made in the background", param="id")
        await self._background.cancel(id)
        return json_response((await self._kept(id)).response)

    async def list_input_items(
        self,
        id: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """All items that a response answers, those of earlier responses too."""
        include = _check_query(request, "limit", "order", "after")
        items = self._with(include, (await self._kept(id)).input)
        return json_response(page(items, limit, order, after))

    def _with(self, include: list[str], items: Items) -> Items:
        """Kept items with what a client wants besides. Raises ApiError for what was not kept."""
        if "reasoning.encrypted_content" in include:
            items = [_sealed(item, self._seal) for item in items]
        if "message.output_text.logprobs" in include:
            parts = [part for item in items for part in item.get("content") or ()]
            if any(part["text"] and part.get("logprobs") == [] for part in parts):
                message = "include: log-probabilities are kept if the request asked for them"
                raise ApiError(400, message, param="include")
        return items

    async def _kept(self, id: str, param: str | None = None) -> Kept:
        found = await self._background.find(id)
        if found is None:
            raise _missing(id, param)
        return found

    async def _followed(self, id: str, after: int) -> Response:
        await self._kept(id)
        events = await self._background.follow(id, after)
        if events is None:
            why = "it was not made in the background"
            raise ApiError(400, f"stream: the events of '{id}' are not kept: {why}", param="stream")
        return event_stream(events)

    async def _read(self, body: ResponseRequest) -> Asked:
        id = new_id("resp")
        items: Items = []
        if body.previous_response_id is not None:
            earlier = await self._kept(body.previous_response_id, "previous_response_id")
            if earlier.response["status"] in ("queued", "in_progress"):
                message = "previous_response_id: this response is not complete yet"
                raise ApiError(400, message, param="previous_response_id")
            items = [*earlier.input, *earlier.response["output"]]
        for n, item in enumerate(await asyncio.to_thread(self._input, body, id)):
            refers = item["type"] == "item_reference"
            items.append(await self._referred(item["id"], f"input[{n}]") if refers else item)
        try:
            offered = Offered(body.tools)
        except OssiaError as error:
            raise ApiError(400, str(error), param="tools") from error
        hosted = self._service.offer(offered.functions, body.max_tool_calls)
        return Asked(body, id, items, offered, hosted, self._seal)

    async def _referred(self, id: str, where: str) -> dict[str, Any]:
        """An item that the server has. Raises ApiError if it has not."""
        kept = await self._background.find(response_of(id))
        known = [*kept.response["output"], *kept.input] if kept else ()
        found = next((one for one in known if one["id"] == id), None)
        if found is None:
            raise ApiError(404, f"{where}: there is no item '{id}'", param=where)
        return found

    def _input(self, body: ResponseRequest, response: str) -> Items:
        """The items of the input, each with an id, and readable. For any thread."""
        if isinstance(body.input, str):
            part = {"type": "input_text", "text": body.input}
            items: Items = [{"role": "user", "content": [part]}]
        else:
            items = [item.model_dump(exclude_unset=True) for item in body.input]
        return [
            {"type": "message", "id": item_id("item", response, f"in{n:04x}")}
            | self._opened(item, f"input[{n}]")
            for n, item in enumerate(items)
        ]

    def _opened(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """An item, with the text of reasoning that only this server can read."""
        sealed = item.pop("encrypted_content", None)
        if sealed is None or item.get("type") == "item_reference":
            return item
        try:
            text = self._seal.open(sealed)
        except OssiaError as error:
            where = f"{where}.encrypted_content"
            code = "invalid_encrypted_content"
            raise ApiError(400, f"{where}: {error}", param=where, code=code) from error
        return item | {"content": [{"type": "reasoning_text", "text": text}]}

    async def _keep(self, answer: Answer, _last: Event) -> None:
        if answer.asked.body.store:
            kept = Kept(answer.response(), answer.asked.items)
            await asyncio.to_thread(self._store.put, kept)

    async def _whole(self, answer: Answer, running: Running) -> Response:
        async with running.held():
            async for _ in answer.events(running, lambda last: self._keep(answer, last)):
                pass
        return json_response(answer.response())

    async def _written(self, answer: Answer, running: Running) -> AsyncIterator[bytes]:
        try:
            async with running.held():
                async for event in answer.events(running, lambda last: self._keep(answer, last)):
                    yield named_event(event)
        except Exception as error:  # the status was sent long ago
            yield named_event(answer.failed(error))


def _missing(id: str, param: str | None = None) -> ApiError:
    return ApiError(404, f"there is no response '{id}'", param=param, code="not_found")


def _check_tools(service: Service, body: ResponseRequest) -> None:
    """Log what the model is not offered. Raises ApiError for tools that the server lacks."""
    if any(isinstance(tool, WebSearchTool) for tool in body.tools):
        _log.info("a request names the tool web_search, which the model is not offered")
    runs_code = any(tool.is_python for tool in service.hosted.tools)
    if not runs_code and any(isinstance(tool, CodeInterpreterTool) for tool in body.tools):
        message = "tools: this server runs no code; it would with --tool python"
        raise ApiError(400, message, param="tools")


def _check_query(request: Request, *known: str) -> list[str]:
    """The values of include. Raises ApiError for it, or for a parameter that is not known."""
    include = []
    for name, value in request.query_params.multi_items():
        if name in ("include", "include[]"):
            if value not in get_args(Includable):
                raise ApiError(400, f"include: '{value[:40]}' cannot be had", param="include")
            include.append(value)
        elif name not in known and (name, value) != ("include_obfuscation", "false"):
            raise ApiError(400, f"Unsupported parameter: '{name}'.", param=name)
    return include


def _sealed(item: dict[str, Any], seal: Seal) -> dict[str, Any]:
    if item["type"] != "reasoning" or "encrypted_content" in item:
        return item
    text = "".join(part["text"] for part in item.get("content") or item["summary"])
    return item | {"encrypted_content": seal.close(text)}


def _dialogue(service: Service, asked: Asked) -> Dialogue:
    body, hosted = asked.body, asked.hosted
    tools = [*asked.offered.functions, *hosted.functions]
    most = body.max_output_tokens
    effort = body.reasoning.effort
    logprobs = None
    if "message.output_text.logprobs" in body.include:
        logprobs = body.top_logprobs or 0

    def make(said: Any, used: int) -> Ask:
        try:
            return service.llm.prepare(
                said,
                tools or None,
                None if effort == "none" else effort,
                effort != "none",
                instructions=body.instructions,
                tool_choice=_tool_choice(asked, used),
                parallel_tool_calls=body.parallel_tool_calls,
                response_format=_response_format(body),
                built_in=hosted.built_in,
                max_tokens=most and most - used,
                temperature=body.temperature,
                top_p=body.top_p,
                logprobs=logprobs,
            )
        except TooLong:
            raise
        except OssiaError as error:
            problem = re.sub(r"^response_format(\.json_schema)?", "text.format", str(error))
            raise OssiaError(problem) from error

    def make_fit(said: Messages, used: int) -> Ask:
        longest = service.longest_prompt(most)

        def tried(kept: Sequence[dict[str, Any]]) -> Ask | TooLong:
            try:
                return make(kept, used)
            except TooLong as error:
                return error

        found = fitted(
            said, tried, lambda ask: isinstance(ask, Ask) and len(ask.request.prompt) <= longest
        )
        if isinstance(found, TooLong):
            raise found
        return found

    how = make_fit if body.truncation == "auto" else make
    return Dialogue(hosted, messages(asked.items), how, most)


def _tool_choice(asked: Asked, used: int) -> Any:
    """The choice, with the names by which the model knows functions."""
    sent = asked.body.tool_choice
    choice = later_choice(sent) if used else as_sent(sent)
    if isinstance(choice, str):
        return choice
    for chosen in choice.get("tools", [choice]):
        chosen["name"] = flat_name(*asked.offered.origin(chosen["name"]))
    return choice


def _response_format(body: ResponseRequest) -> dict[str, Any] | None:
    """The answer's form as Chat Completions' parameter."""
    form = as_sent(body.text.format)
    if form is None or form["type"] != "json_schema":
        return form
    kind = form.pop("type")
    return {"type": kind, kind: form}
