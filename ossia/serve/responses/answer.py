"""One response: what it is at any moment, and the events that tell of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ossia.api import Finished
from ossia.serve.errors import failure
from ossia.serve.hosted import Offer
from ossia.serve.logprobs import ShownTokens, written
from ossia.serve.responses.items import Items, OutputItems, Style
from ossia.serve.responses.seal import Seal
from ossia.serve.responses.tools import Offered
from ossia.serve.responses.wire import ResponseRequest
from ossia.serve.service import Running, Service
from ossia.serve.structure_wire import as_sent

Event = dict[str, Any]

_ECHOED = {
    "background",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "store",
    "temperature",
    "tool_choice",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
}


@dataclass(frozen=True)
class Asked:
    """A request as it was understood. id: of the response to it. items: all that it answers, those
    of earlier responses too. hosted: the tools of the server's.
    """

    body: ResponseRequest
    id: str
    items: Items
    offered: Offered
    hosted: Offer
    seal: Seal


class Answer:
    """A response as it comes to be."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self.asked, self._service = asked, service
        body = asked.body
        self._output: OutputItems | None = None
        self._number = 0  # of the next event
        self._response = {
            **body.model_dump(include=_ECHOED),
            "id": asked.id,
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "queued" if body.background else "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": service.name,
            "output": [],
            "text": {"format": as_sent(body.text.format) or {"type": "text"}},
            "tools": [tool.model_dump() for tool in body.tools],
            "usage": None,
        }

    @property
    def ended(self) -> bool:
        return self._response["status"] not in ("queued", "in_progress")

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        if self.ended or self._output is None:
            return self._response
        return self._response | {"output": [*self._output.so_far()]}

    async def events(
        self, running: Running, keep: Callable[[Event], Awaitable[None]]
    ) -> AsyncIterator[Event]:
        """The events, each with its number. `keep` is called with the last before it is told."""
        self._output = output = OutputItems(self._style(running))
        yield self._told("created")
        if self.asked.body.background:
            yield self._told("queued")
        else:
            yield self._told("in_progress")
        listed = False
        async for _, event in running.events():
            if self._response["status"] == "queued":
                self._response["status"] = "in_progress"
                yield self._told("in_progress")
            if not listed:
                listed = True
                for told in output.lists(self.asked.hosted, _listed(self.asked.items)):
                    yield self._numbered(told)
            if not isinstance(event, Finished):
                for told in output.read(event):
                    yield self._numbered(told)
                continue
            status = "incomplete" if event.reason == "length" else "completed"
            for told in output.end(status):
                yield self._numbered(told)
            self._end(status, event)
            last = self._told(status)
            await keep(last)
            yield last

    def failed(self, error: Exception) -> Event:
        """The last event of a response that an error ended."""
        message = failure(error).message
        self._response["error"] = {"code": "server_error", "message": message}
        return self._stopped("failed", "failed")

    def cancelled(self) -> Event:
        """The last event of a response that was cancelled. There is no type of event for it: it is
        an incomplete one, and its status says why.
        """
        return self._stopped("cancelled", "incomplete")

    def _stopped(self, status: str, kind: str) -> Event:
        if self._output is not None:
            for _ in self._output.end("incomplete"):
                pass
            self._response["output"] = self._output.items
        self._response["status"] = status
        return self._told(kind)

    def _style(self, running: Running) -> Style:
        asked, logprobs, seal = self.asked, None, None
        if "message.output_text.logprobs" in asked.body.include:
            shown = ShownTokens(running.streams[0])
            logprobs = partial(written, shown, self._service.llm.tokenizer)
        if "reasoning.encrypted_content" in asked.body.include:
            seal = asked.seal.close
        return Style(asked.id, asked.offered, logprobs, seal)

    def _end(self, status: str, end: Finished) -> None:
        assert self._output is not None
        self._response |= {"status": status, "output": self._output.items}
        if status == "incomplete":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._response["completed_at"] = int(time.time())
        self._response["usage"] = {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }

    def _told(self, kind: str) -> Event:
        """An event about the whole response."""
        return self._numbered({"type": f"response.{kind}", "response": dict(self._response)})

    def _numbered(self, event: Event) -> Event:
        self._number += 1
        return {**event, "sequence_number": self._number - 1}


def _listed(items: Items) -> set[str]:
    """The sets of tools whose lists the conversation has."""
    return {item["server_label"] for item in items if item["type"] == "mcp_list_tools"}
