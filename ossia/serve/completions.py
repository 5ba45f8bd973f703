"""POST /v1/completions: prompts, as text or ids, and what the model writes after them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from ossia.api import Ask, AsyncStream, Finished
from ossia.engine import TokenOutput
from ossia.serve.logprobs import ShownTokens, finite
from ossia.serve.service import Running, Service, unless_disconnected
from ossia.serve.stream import event_stream
from ossia.serve.wire import Sampled, Usage, Wire
from ossia.text import Event, TextDelta, Tokenizer

MAX_PROMPTS = 2048
MAX_LOGPROBS = 20

Id = Annotated[int, Field(ge=0)]


class CompletionRequest(Sampled):
    """A request for the continuation of one or several prompts. best_of: only n, because answers
    are not ranked.
    """

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Id], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[Id], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_PROMPTS),
        ]
    )
    max_tokens: Annotated[int, Field(ge=1)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _hang_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must be n: answers are not ranked")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs needs those of the prompt, which ossia lacks yet")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[id for id in self.prompt if isinstance(id, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextLogprobs(Wire):
    """Lists of a value for each token. text_offset: where in the text the token begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Wire):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: TextLogprobs | None


class Completion(Wire):
    """A whole answer, or a part of it in a stream, where only the last part of a choice has a
    finish_reason.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


PARAMETERS = tuple(CompletionRequest.model_fields)


def routes(service: Service) -> APIRouter:
    """The endpoint over a service."""
    router = APIRouter()

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={
            200: {
                "description": "The texts; with stream: true, their parts as server-sent events.",
                "content": {
                    "text/event-stream": {"schema": {"$ref": "#/components/schemas/Completion"}}
                },
            }
        },
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        asks = [
            await service.prepare(lambda prompt=prompt: _ask(service, body, prompt), PARAMETERS)
            for prompt in body.prompts()
        ]
        running = service.start(asks, body.n, PARAMETERS)
        answer = _Answer(service, body, running)
        if body.stream:
            return event_stream(running, answer.chunks())
        return await unless_disconnected(request, answer.whole())

    return router


def _ask(service: Service, body: CompletionRequest, prompt: str | list[int]) -> Ask:
    return service.llm.prepare_text(prompt, **body.sampling(body.max_tokens, body.logprobs))


class _Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(self, service: Service, body: CompletionRequest, running: Running) -> None:
        self._service, self._body, self._running = service, body, running
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._texts = [
            _Text(stream, service.llm.tokenizer if body.logprobs is not None else None)
            for stream in running.streams
        ]

    def _begin(self) -> list[str]:
        """What each choice's text begins with: its prompt, if that is echoed."""
        if not self._body.echo:
            return [""] * len(self._texts)
        prompts = [
            prompt if isinstance(prompt, str) else self._service.llm.tokenizer.decode(prompt)
            for prompt in self._body.prompts()
        ]
        return [prompt for prompt in prompts for _ in range(self._body.n)]

    async def whole(self) -> Response:
        parts: list[list[dict[str, Any]]] = [[] for _ in self._texts]
        async with self._running.held():
            async for n, event in self._running.events():
                parts[n].append(self._texts[n].read(event))
        choices = [_joined(n, begin, parts[n]) for n, begin in enumerate(self._begin())]
        usage = Usage.of(self._running.ends, self._body.n)
        answer = Completion.model_validate(self._chunk(choices) | {"usage": usage})
        return Response(answer.model_dump_json(), media_type="application/json")

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        begins = self._begin()
        async for n, event in self._running.events():
            part = {"index": n, **self._texts[n].read(event)}
            part["text"], begins[n] = begins[n] + part["text"], ""
            yield self._chunk([part])
        if self._body.wants_usage:
            usage = Usage.of(self._running.ends, self._body.n)
            yield self._chunk([]) | {"usage": usage.model_dump()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.name,
            "choices": choices,
        }


def _joined(index: int, begin: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One choice from its parts; `begin` is the text before them."""
    logprobs = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    joined = None
    if logprobs:
        joined = {
            key: None if logprobs[0][key] is None else [x for part in logprobs for x in part[key]]
            for key in logprobs[0]
        }
    return {
        "index": index,
        "text": begin + "".join(part["text"] for part in parts),
        "finish_reason": parts[-1]["finish_reason"],
        "logprobs": joined,
    }


class _Text:
    """One choice's events as the parts of its text. tokenizer: where log-probabilities are asked
    for.
    """

    def __init__(self, stream: AsyncStream, tokenizer: Tokenizer | None) -> None:
        self._shown, self._tokenizer = ShownTokens(stream), tokenizer
        self._length = 0
        self._decoder = tokenizer.stream() if tokenizer else None

    def read(self, event: Event | Finished) -> dict[str, Any]:
        """The part of a choice, without its index, that the event makes."""
        if isinstance(event, Finished):
            empty = None if self._tokenizer is None else self._logprobs([])
            return {"text": "", "finish_reason": event.reason, "logprobs": empty}
        assert isinstance(event, TextDelta)  # a bare continuation calls nothing
        logprobs = None if self._tokenizer is None else self._logprobs([*self._shown.take()])
        return {"text": event.text, "finish_reason": None, "logprobs": logprobs}

    def _logprobs(self, outputs: Sequence[TokenOutput]) -> dict[str, Any]:
        assert self._tokenizer is not None
        assert self._decoder is not None
        offsets = []
        for output in outputs:
            offsets.append(self._length)
            self._length += len(self._decoder.push(output.token))
        return {
            "tokens": [self._name(output.token) for output in outputs],
            "token_logprobs": [finite(output.logprob) for output in outputs],
            "top_logprobs": [
                {self._name(token): finite(logprob) for token, logprob in output.top_logprobs}
                for output in outputs
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        """The token's text; of part of a character, its bytes, as OpenAI writes them."""
        assert self._tokenizer is not None
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
