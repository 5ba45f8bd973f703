"""Calls of the server's tools in Chat Completions: in a field of their own, which clients that do
not know it pass over, and not in `tool_calls`, which they would answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ossia.serve.rounds import HostedDelta, HostedEvent, HostedResult, HostedStart
from ossia.serve.wire import Given, Wire


class HostedFunction(Given):
    name: str
    arguments: str


class HostedCall(Given):
    """A call that the server has run. server_label: the set of tools that the tool belongs to."""

    id: str
    type: Literal["function"] = "function"
    server_label: str
    function: HostedFunction
    output: str | None = None
    is_error: bool = False


class PartOfHostedFunction(Wire):
    name: str | None = None
    arguments: str


class PartOfHostedCall(Wire):
    """The first part of a call has its id, type, label and name, the last what it gave."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    server_label: str | None = None
    function: PartOfHostedFunction | None = None
    output: str | None = None
    is_error: bool | None = None


def part(event: HostedStart | HostedDelta | HostedResult) -> dict[str, Any]:
    """What the event adds to a call."""
    match event:
        case HostedStart(index, id, tool):
            call = {"id": id, "type": "function", "server_label": tool.label}
            return {"index": index, **call, "function": {"name": tool.name, "arguments": ""}}
        case HostedDelta(index, arguments):
            return {"index": index, "function": {"arguments": arguments}}
        case HostedResult(index, _, result):
            return {"index": index, "output": result.text, "is_error": result.is_error}


class HostedCalls:
    """Gathers the calls of a reply."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []

    def add(self, event: HostedEvent) -> None:
        """Take what the event adds."""
        match event:
            case HostedStart():
                self._calls.append(part(event))
            case HostedDelta(index, arguments):
                self._calls[index]["function"]["arguments"] += arguments
            case HostedResult(index):
                self._calls[index] |= part(event)

    def calls(self) -> list[HostedCall] | None:
        """The calls, as a message has them; None without any."""
        found = [{k: v for k, v in call.items() if k != "index"} for call in self._calls]
        return [HostedCall.model_validate(call) for call in found] or None


def with_calls(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message that a client sends, as the messages that it stands for: the server's calls and
    their results went before what it says.
    """
    message = dict(message)
    calls = message.pop("server_tool_calls", None)
    if calls:
        called = {key: ("" if key == "content" else value) for key, value in message.items()}
        called["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": call["function"]} for call in calls
        ]
        yield called
        for call in calls:
            output = call.get("output") or ""
            yield {"role": "tool", "tool_call_id": call["id"], "content": output}
        for key in ("reasoning_content", "reasoning", "thinking"):
            message.pop(key, None)
    yield message
