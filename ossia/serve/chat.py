"""POST /v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ossia.api import Ask, AsyncStream, Finished, ReplyBuilder, Watch
from ossia.serve.bodies import BodyRoute
from ossia.serve.chat_hosted import HostedCalls, part, with_calls
from ossia.serve.chat_wire import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    Reply,
    ReplyCall,
)
from ossia.serve.logprobs import ShownTokens, written
from ossia.serve.rounds import (
    Dialogue,
    HostedDelta,
    HostedEvent,
    HostedResult,
    HostedStart,
    Messages,
    ReplyEvent,
    Rounds,
)
from ossia.serve.service import Running, Service, unless_disconnected
from ossia.serve.stream import chunk_stream, documented
from ossia.serve.structure_wire import as_sent, later_choice
from ossia.serve.wire import Usage
from ossia.serve.xray import Xray
from ossia.text import Channel, TextDelta, Tokenizer, ToolCallDelta, ToolCallStart

PARAMETERS = tuple(ChatRequest.model_fields)


def routes(service: Service) -> APIRouter:
    """The endpoint over a service."""
    router = APIRouter(route_class=BodyRoute)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=documented(
            "The answer; with stream: true, its parts as server-sent events.",
            ChatCompletionChunk.__name__,
        ),
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        service.check_model(body.model)
        dialogue, ask = await service.open(lambda: _dialogue(service, body), PARAMETERS)
        watch = await service.watch(ask) if body.xray else None
        running = service.converse(dialogue, ask, body.n, PARAMETERS)
        answer = _Answer(service, body, running, watch)
        if body.stream:
            return chunk_stream(running, answer.chunks())
        return await unless_disconnected(request, answer.whole())

    return router


def _dialogue(service: Service, body: ChatRequest) -> Dialogue:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    functions = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
    thinking = body.chat_template_kwargs.enable_thinking and body.reasoning_effort != "none"
    most = body.max_tokens or body.max_completion_tokens
    offer = service.offer(functions)
    tools = [*functions, *offer.functions]

    def make(messages: Messages, used: int) -> Ask:
        return service.llm.prepare(
            messages,
            tools or None,
            None if body.reasoning_effort == "none" else body.reasoning_effort,
            thinking,
            tool_choice=later_choice(body.tool_choice) if used else as_sent(body.tool_choice),
            parallel_tool_calls=body.parallel_tool_calls,
            built_in=offer.built_in,
            **body.structure(),
            **body.sampling(most and most - used, logprobs),
        )

    sent = [message.model_dump(exclude_unset=True) for message in body.messages]
    return Dialogue(offer, [part for message in sent for part in with_calls(message)], make, most)


class _Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(
        self, service: Service, body: ChatRequest, running: Running, watch: Watch | None
    ) -> None:
        self._service, self._body, self._running = service, body, running
        self._watch = watch
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> Response:
        streams, tokenizer = self._running.streams, self._service.llm.tokenizer
        replies = [ReplyBuilder() for _ in streams]
        shown = [ShownTokens(stream) for stream in streams]
        hosted = [HostedCalls() for _ in streams]
        paragraphs = [_Paragraphs() for _ in streams]
        logprobs: list[list[Any]] = [[] for _ in streams]
        async with self._running.held():
            async for n, event in self._running.events():
                event = paragraphs[n].read(event)
                if isinstance(event, HostedEvent):
                    hosted[n].add(event)
                else:
                    replies[n].add(event)
                if self._body.logprobs and _is_shown(event):
                    logprobs[n] += written(shown[n], tokenizer)
        answer = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._service.name,
            choices=[
                _choice(n, builder, hosted[n], logprobs[n] if self._body.logprobs else None)
                for n, builder in enumerate(replies)
            ],
            usage=Usage.of(self._running.ends, len(streams)),
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        deltas = [
            _Deltas(stream, self._service.llm.tokenizer if self._body.logprobs else None)
            for stream in self._running.streams
        ]
        xray = None
        if self._watch is not None:
            xray = Xray(self._watch, self._running.streams[0], self._service.llm.tokenizer)
        try:
            async for n, event in self._running.events():
                for made in deltas[n].read(event):
                    yield self._chunk([{"index": n, **made}])
                if xray is not None and (seen := xray.ready()):
                    yield self._chunk([]) | {"xray": seen}
            if xray is not None and (seen := await xray.rest()):
                yield self._chunk([]) | {"xray": seen}
        finally:
            if xray is not None:
                xray.close()
        if self._body.wants_usage:
            usage = Usage.of(self._running.ends, len(deltas))
            yield self._chunk([]) | {"usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._service.name,
            "choices": choices,
        }
        return chunk | {"usage": None} if self._body.wants_usage else chunk


def _choice(
    index: int, builder: ReplyBuilder, hosted: HostedCalls, logprobs: list[Any] | None
) -> Choice:
    reply = builder.reply()
    shown = reply.message()["content"]
    calls = [ReplyCall.model_validate(call.to_dict()) for call in reply.tool_calls]
    return Choice.model_validate(
        {
            "index": index,
            "message": Reply(
                content=shown or (None if calls else ""),
                reasoning_content=reply.reasoning or None,
                tool_calls=calls or None,
                server_tool_calls=hosted.calls(),
            ),
            "finish_reason": reply.finish_reason,
            "logprobs": None if logprobs is None else {"content": logprobs},
        }
    )


class _Deltas:
    """One choice's events as the parts that its chunks carry. tokenizer: where log-probabilities
    are asked for.
    """

    def __init__(self, stream: AsyncStream | Rounds, tokenizer: Tokenizer | None) -> None:
        self._shown, self._tokenizer = ShownTokens(stream), tokenizer
        self._paragraphs = _Paragraphs()
        self._began = False
        self._preamble = False  # was shown, and the answer has not begun

    def read(self, event: ReplyEvent | Finished) -> Iterator[dict[str, Any]]:
        """The parts of a choice, without its index, that the event makes."""
        if not self._began:
            self._began = True
            yield _part({"role": "assistant", "content": ""})
        match self._paragraphs.read(event):
            case TextDelta(Channel.REASONING, text):
                yield _part({"reasoning_content": text})
            case TextDelta(channel, text):
                if self._preamble and channel is Channel.FINAL:
                    text = "\n\n" + text
                self._preamble = channel is Channel.PREAMBLE
                logprobs = None
                if self._tokenizer is not None:
                    logprobs = {"content": written(self._shown, self._tokenizer)}
                yield _part({"content": text}, logprobs)
            case ToolCallStart(index, name):
                call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
                function = {"name": name, "arguments": ""}
                yield _part({"tool_calls": [{"index": index, **call, "function": function}]})
            case ToolCallDelta(index, arguments):
                function = {"arguments": arguments}
                yield _part({"tool_calls": [{"index": index, "function": function}]})
            case HostedStart() | HostedDelta() | HostedResult() as called:
                yield _part({"server_tool_calls": [part(called)]})
            case Finished(reason):
                yield {"delta": {}, "logprobs": None, "finish_reason": reason}


class _Paragraphs:
    """Begins a paragraph where a channel goes on after calls of the server's tools."""

    def __init__(self) -> None:
        self._spoken: set[Channel] = set()
        self._due: set[Channel] = set()

    def read(self, event: ReplyEvent | Finished) -> ReplyEvent | Finished:
        """The event, of a text perhaps with a blank line before it."""
        match event:
            case HostedResult():
                self._due |= self._spoken
            case TextDelta(channel, text):
                self._spoken.add(channel)
                if channel in self._due:
                    self._due.discard(channel)
                    return TextDelta(channel, f"\n\n{text}")
        return event


def _part(delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"delta": delta, "logprobs": logprobs, "finish_reason": None}


def _is_shown(event: ReplyEvent | Finished) -> bool:
    return isinstance(event, TextDelta) and event.channel is not Channel.REASONING
