"""POST /v1/tokenize and /v1/detokenize: prompts as ids, and ids as text, without the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, model_validator

from ossia.api import Ask
from ossia.serve.bodies import BodyRoute
from ossia.serve.chat_hosted import with_calls
from ossia.serve.chat_wire import Message, Tool
from ossia.serve.errors import ApiError, refusal
from ossia.serve.service import Service
from ossia.serve.wire import Given, Wire
from ossia.text import Tokenizer, TooLong, at_most

MOST_TOKENS = 2**20  # of a text, whatever the model's context; as JSON some megabytes


class TokenizeRequest(Given):
    """A text, or a conversation that is rendered as for a reply."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt or messages must be given, and not both")
        if self.tools and self.messages is None:
            raise ValueError("tools are only for messages")
        return self


class Tokens(Wire):
    """max_model_len: the most tokens of a text, prompt and answer."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Given):
    model: str | None = None
    tokens: list[int]


class Text(Wire):
    prompt: str


def routes(service: Service) -> APIRouter:
    """The endpoints over a service."""
    router = APIRouter(route_class=BodyRoute)
    llm = service.llm

    @router.post("/v1/tokenize")
    async def tokenize(body: TokenizeRequest) -> Tokens:
        if body.model is not None:
            service.check_model(body.model)
        if body.prompt is not None:
            try:
                ids = await asyncio.to_thread(_encoded, llm.tokenizer, body.prompt)
            except TooLong as error:
                raise refusal(error, ()) from error
        else:
            ask = await service.prepare(lambda: _rendered(service, body), ("messages", "tools"))
            ids = [*ask.request.prompt]
        return Tokens(tokens=ids, count=len(ids), max_model_len=service.max_length)

    @router.post("/v1/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Text:
        if body.model is not None:
            service.check_model(body.model)
        return Text(prompt=await asyncio.to_thread(_decoded, llm.tokenizer, body.tokens))

    return router


def _encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    with at_most(MOST_TOKENS):
        return tokenizer.encode(prompt)


def _rendered(service: Service, body: TokenizeRequest) -> Ask:
    sent = [message.model_dump(exclude_unset=True) for message in body.messages or ()]
    messages = [part for message in sent for part in with_calls(message)]
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
    offer = service.offer(tools)
    tools = [*tools, *offer.functions]
    return service.llm.prepare(messages, tools or None, built_in=offer.built_in)


def _decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of ids. Raises ApiError for one outside the vocabulary."""
    size = tokenizer.vocab_size
    for n, token in enumerate(tokens):
        if not 0 <= token < size:
            raise ApiError(
                400,
                f"tokens[{n}] is {token}, which is outside the vocabulary of {size}",
                param=f"tokens[{n}]",
            )
    return tokenizer.decode(tokens)
