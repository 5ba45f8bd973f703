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
from ossia.serve.bodies import BodyRoute
from ossia.serve.logprobs import ShownTokens, finite
from ossia.serve.rounds import ReplyEvent
from ossia.serve.service import Running, Service, unless_disconnected
from ossia.serve.stream import chunk_stream, documented
from ossia.serve.structure_wire import Structured
from ossia.serve.wire import Sampled, Usage, Wire
from ossia.text import TextDelta, Tokenizer

MAX_PROMPTS = 2048
MAX_LOGPROBS = 20

Id = Annotated[int, Field(ge=0)]


class CompletionRequest(Sampled, Structured):
    """A request for the continuation of one or several prompts. echo: begin each text, and its
    logprobs, with the prompt. best_of: only n, because answers are not ranked.
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
    max_tokens: Annotated[int, Field(ge=0)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _hang_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must be n: answers are not ranked")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[id for id in self.prompt if isinstance(id, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextLogprobs(Wire):
    """Lists of a value for each token; null for the first of a prompt, which nothing precedes, and
    for a prompt that was not read in the request's time.
    top_logprobs: the most likely tokens, and the token itself. text_offset: where in the text the
    token begins.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
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
    router = APIRouter(route_class=BodyRoute)

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses=documented(
            "The texts; with stream: true, their parts as server-sent events.", Completion.__name__
        ),
    )
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        service.check_model(body.model)
        asks = [
            await service.prepare(lambda prompt=prompt: _ask(service, body, prompt), PARAMETERS)
            for prompt in body.prompts()
        ]
        running = service.start(asks, body.n, PARAMETERS)
        prompts = [ask.request.prompt for ask in asks]
        answer = _Answer(service, body, running, prompts)
        if body.stream:
            return chunk_stream(running, answer.chunks())
        return await unless_disconnected(request, answer.whole())

    return router


def _ask(service: Service, body: CompletionRequest, prompt: str | list[int]) -> Ask:
    sampling = body.sampling(body.max_tokens, body.logprobs)
    if body.echo:
        sampling["prompt_logprobs"] = body.logprobs
    return service.llm.prepare_text(prompt, **sampling, **body.structure())


class _Answer:
    """The answer to one request, whole or in chunks. prompts: the ids of each prompt."""

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        running: Running,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        self._service, self._body, self._running = service, body, running
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        tokenizer = service.llm.tokenizer
        texts = [p if isinstance(p, str) else tokenizer.decode(p) for p in body.prompts()]
        self._texts = [
            _Text(
                stream,
                texts[n // body.n] if body.echo else "",
                prompts[n // body.n] if body.echo else (),
                None if body.logprobs is None else tokenizer,
            )
            for n, stream in enumerate(running.streams)
            if isinstance(stream, AsyncStream)
        ]

    async def whole(self) -> Response:
        parts: list[list[dict[str, Any]]] = [[] for _ in self._texts]
        async with self._running.held():
            async for n, event in self._running.events():
                parts[n].append(self._texts[n].read(event))
        choices = [_joined(n, parts) for n, parts in enumerate(parts)]
        usage = Usage.of(self._running.ends, self._body.n)
        answer = Completion.model_validate(self._chunk(choices) | {"usage": usage})
        return Response(answer.model_dump_json(), media_type="application/json")

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        async for n, event in self._running.events():
            yield self._chunk([{"index": n, **self._texts[n].read(event)}])
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


def _joined(index: int, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One choice from its parts."""
    logprobs = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    joined = None
    if logprobs:
        joined = {key: [x for part in logprobs for x in part[key]] for key in logprobs[0]}
    return {
        "index": index,
        "text": "".join(part["text"] for part in parts),
        "finish_reason": parts[-1]["finish_reason"],
        "logprobs": joined,
    }


class _Text:
    """One choice's events as the parts of its text. text, prompt: what it begins with, as text and
    as ids; nothing if the prompt is not echoed. tokenizer: where log-probabilities are asked for.
    """

    def __init__(
        self,
        stream: AsyncStream,
        text: str,
        prompt: Sequence[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self._stream, self._shown = stream, ShownTokens(stream)
        self._begin, self._prompt = text, prompt
        self._logprobs = None if tokenizer is None else _Logprobs(tokenizer)

    def read(self, event: ReplyEvent | Finished) -> dict[str, Any]:
        """The part of a choice, without its index, that the event makes."""
        reason = event.reason if isinstance(event, Finished) else None
        assert isinstance(event, Finished | TextDelta)  # a bare continuation calls nothing
        text = self._begin + (event.text if isinstance(event, TextDelta) else "")
        logprobs = None
        if self._logprobs is not None:
            prompt = self._logprobs.of(self._echoed(), self._begin)
            shown = [*(self._shown.take() if reason is None else self._shown.rest(reason))]
            tokens = [(o.token, o.logprob, o.top_logprobs) for o in shown]
            answer = self._logprobs.of(tokens)
            logprobs = {key: prompt[key] + answer[key] for key in prompt}
        self._begin, self._prompt = "", ()
        return {"text": text, "finish_reason": reason, "logprobs": logprobs}

    def _echoed(self) -> list[_Scored]:
        """The prompt's tokens, if they have not been given yet."""
        if not self._prompt:
            return []
        if self._stream.prompt is None:  # the request's time was over before it was read
            return [(token, None, ()) for token in self._prompt]
        scored = self._stream.prompt.logprobs
        return [(self._prompt[0], None, ()), *((s.token, s.logprob, s.top) for s in scored)]


# A token, its log-probability, and the most likely ids in its place; None and nothing for the first
# of a prompt.
_Scored = tuple[int, float | None, Sequence[tuple[int, float]]]


class _Logprobs:
    """The lists of `TextLogprobs` for parts of a text, one after another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.stream()
        self._length = 0  # of the text so far

    def of(self, tokens: Sequence[_Scored], text: str | None = None) -> dict[str, list[Any]]:
        """The lists for the next tokens. text: the part that they are, if it is known as a whole;
        else it is what they decode to.
        """
        begin, offsets = self._length, []
        for token, *_ in tokens:
            offsets.append(self._length)
            self._length += len(self._decoder.push(token))
        if text is not None:
            self._decoder.finish()
            self._length = begin + len(text)
            offsets = [min(offset, self._length) for offset in offsets]
        return {
            "tokens": [self._name(token) for token, *_ in tokens],
            "token_logprobs": [None if p is None else finite(p) for _, p, _ in tokens],
            "top_logprobs": [self._top(*scored) for scored in tokens],
            "text_offset": offsets,
        }

    def _top(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> dict[str, float] | None:
        """The most likely tokens by name, and the token itself; of several with the same name the
        most likely.
        """
        if logprob is None:
            return None
        found: dict[str, float] = {}
        for id, value in [*top, (token, logprob)]:
            found.setdefault(self._name(id), finite(value))
        return found

    def _name(self, token: int) -> str:
        """The token's text; of part of a character, its bytes, as OpenAI writes them."""
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
