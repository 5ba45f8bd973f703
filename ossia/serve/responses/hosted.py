"""Calls of the server's tools as items of a response: of code, and of MCP's kind for all others,
whose official items say what was called, with what, and what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ossia.serve.hosted import HostedTool, Offer
from ossia.serve.rounds import HostedDelta, HostedEvent, HostedResult, HostedRun, HostedStart
from ossia.tools.python import code_of

Item = dict[str, Any]


class HostedItems:
    """The items of the calls of one response, among its other `items`. id: makes that of the next
    item of a kind.
    """

    def __init__(self, items: list[Item], id: Callable[[str], str]) -> None:
        self._items, self._id = items, id
        self._places: dict[int, int] = {}  # of the items of calls that have not ended

    def read(self, event: HostedEvent) -> Iterator[dict[str, Any]]:
        """What the event makes known."""
        match event:
            case HostedStart(index, _, tool):
                self._places[index] = len(self._items)
                yield from self._open(self._begun(tool))
            case HostedDelta(index, arguments) if not self._is_code(index):
                yield self._told(index, "mcp_call_arguments.delta", delta=arguments)
            case HostedRun(index, arguments):
                yield from self._runs(index, arguments)
            case HostedResult(index, _, result):
                yield from self._ended(index, result.text, result.is_error)

    def end(self) -> Iterator[dict[str, Any]]:
        """End the calls that the model did not write to their end."""
        for index in [*self._places]:
            yield from self._done(index, "incomplete")

    def lists(self, offer: Offer, known: Collection[str]) -> Iterator[dict[str, Any]]:
        """The tools that can be called, of each set but those whose lists are known."""
        labels = dict.fromkeys(tool.label for tool in offer.tools if not tool.is_python)
        for label in (label for label in labels if label not in known):
            tools = [_described(tool) for tool in offer.tools if tool.label == label]
            item = {"id": self._id("mcpl"), "type": "mcp_list_tools", "server_label": label}
            place = len(self._items)
            yield from self._open(item | {"tools": [], "error": None})
            self._items[place]["tools"] = tools
            yield self._at(place, "mcp_list_tools.completed")
            yield self._item(place, "output_item.done")

    def _begun(self, tool: HostedTool) -> Item:
        if tool.is_python:
            id = self._id("ci")
            container = f"cntr_{id.partition('_')[2]}"  # each call runs in one of its own
            item = {"id": id, "type": "code_interpreter_call", "container_id": container}
            return item | {"code": "", "outputs": [], "status": "in_progress"}
        item = {"id": self._id("mcp"), "type": "mcp_call", "server_label": tool.label}
        more = {"output": None, "error": None, "approval_request_id": None}
        return item | {"name": tool.name, "arguments": "", **more, "status": "in_progress"}

    def _open(self, item: Item) -> Iterator[dict[str, Any]]:
        self._items.append(item)
        place = len(self._items) - 1
        yield self._item(place, "output_item.added")
        yield self._at(place, f"{item['type']}.in_progress")

    def _runs(self, index: int, arguments: str) -> Iterator[dict[str, Any]]:
        item = self._items[self._places[index]]
        if not self._is_code(index):
            item["arguments"] = arguments
            yield self._told(index, "mcp_call_arguments.done", arguments=arguments)
            return
        code = item["code"] = code_of(arguments)
        yield self._told(index, "code_interpreter_call_code.delta", delta=code)
        yield self._told(index, "code_interpreter_call_code.done", code=code)
        item["status"] = "interpreting"
        yield self._told(index, "code_interpreter_call.interpreting")

    def _ended(self, index: int, text: str, is_error: bool) -> Iterator[dict[str, Any]]:
        item = self._items[self._places[index]]
        if self._is_code(index):
            item["outputs"] = [{"type": "logs", "logs": text}]
            yield self._told(index, "code_interpreter_call.completed")
            yield from self._done(index, "completed")
            return
        if is_error:
            content = [{"type": "text", "text": text}]
            item["error"] = {"type": "mcp_tool_execution_error", "content": content}
        else:
            item["output"] = text
        status = "failed" if is_error else "completed"
        yield self._told(index, f"mcp_call.{status}")
        yield from self._done(index, status)

    def _done(self, index: int, status: str) -> Iterator[dict[str, Any]]:
        place = self._places.pop(index)
        self._items[place]["status"] = status
        yield self._item(place, "output_item.done")

    def _is_code(self, index: int) -> bool:
        return self._items[self._places[index]]["type"] == "code_interpreter_call"

    def _told(self, index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return self._at(self._places[index], kind, **fields)

    def _at(self, place: int, kind: str, **fields: Any) -> dict[str, Any]:
        where = {"item_id": self._items[place]["id"], "output_index": place}
        return {"type": f"response.{kind}", **where, **fields}

    def _item(self, place: int, kind: str) -> dict[str, Any]:
        item = dict(self._items[place])
        return {"type": f"response.{kind}", "output_index": place, "item": item}


def _described(tool: HostedTool) -> dict[str, Any]:
    function = tool.function
    return {
        "name": tool.name,
        "description": function.description,
        "input_schema": function.parameters,
        "annotations": None,
    }


def called(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """The name of the tool that an item's call names, its arguments, and what it gave."""
    if item["type"] == "code_interpreter_call":
        logs = (output.get("logs", "") for output in item.get("outputs") or ())
        return "python", item.get("code") or "", "".join(logs)
    output = item.get("output")
    if output is None and (error := item.get("error")):
        output = "".join(part["text"] for part in error["content"])
    return item["name"], item["arguments"], output or ""
