"""Items as the messages of a chat, and a reply's events as the items and events of a response."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ossia.text import Channel, Event, TextDelta, ToolCallDelta, ToolCallStart

Items = list[dict[str, Any]]


def messages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of Chat Completions that say the same. Reasoning and calls that follow one
    another are one message of the assistant's.
    """
    said: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's message that goes on
    for item in items:
        kind = item.get("type", "message")
        if kind in ("reasoning", "function_call"):
            if turn is None or (kind == "reasoning" and turn.get("tool_calls")):
                turn = {"role": "assistant", "content": ""}
                said.append(turn)
            if kind == "reasoning":
                parts = item.get("content") or item.get("summary") or ()
                turn["reasoning"] = turn.get("reasoning", "") + _text(parts)
            else:
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                turn.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            result = {"tool_call_id": item["call_id"], "content": _text(item["output"])}
            said.append({"role": "tool", **result})
            turn = None
        elif item["role"] == "assistant":
            if turn is None or turn["content"] or turn.get("tool_calls"):
                turn = {"role": "assistant"}
                said.append(turn)
            turn["content"] = _text(item["content"])
            if item.get("phase") != "commentary":  # calls may follow what was said before them
                turn = None
        else:
            said.append({"role": item["role"], "content": _text(item["content"])})
            turn = None
    return said


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class OutputItems:
    """A reply's items, and the events that tell of them, in the official order. namespaces: of the
    functions that have one.
    """

    def __init__(self, namespaces: Mapping[str, str]) -> None:
        self.items: list[dict[str, Any]] = []
        self._namespaces = namespaces
        self._kind: Channel | int | None = None  # of the item that is open: a channel, or a call
        self._text: list[str] = []

    def read(self, event: Event) -> Iterator[dict[str, Any]]:
        """What the event makes known."""
        match event:
            case TextDelta(channel, text):
                if self._kind is not channel:
                    yield from self.close()
                    yield from self._open_text(channel)
                self._text.append(text)
                logprobs = {} if channel is Channel.REASONING else {"logprobs": []}
                yield self._event(
                    f"{_name(channel)}.delta", content_index=0, delta=text, **logprobs
                )
            case ToolCallStart(index, name):
                yield from self.close()
                yield from self._open_call(index, name)
            case ToolCallDelta(_, arguments):
                self._text.append(arguments)
                yield self._event("function_call_arguments.delta", delta=arguments)

    def close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        """End the item that is open, if one is."""
        if self._kind is None:
            return
        kind, item, text = self._kind, self.items[-1], "".join(self._text)
        self._kind, self._text = None, []
        if isinstance(kind, Channel):
            part = _part(kind, text)
            yield self._event(f"{_name(kind)}.done", **_at(kind), text=text)
            yield self._event("content_part.done", content_index=0, part=part)
            item["content"] = [part]
        else:
            item["arguments"] = text
            done = {"name": item["name"], "arguments": text}
            yield self._event("function_call_arguments.done", **done)
        item["status"] = status
        yield self._item("output_item.done")

    def _open_text(self, channel: Channel) -> Iterator[dict[str, Any]]:
        self._kind = channel
        if channel is Channel.REASONING:
            item = {"id": new_id("rs"), "type": "reasoning", "summary": []}
        else:
            phase = "commentary" if channel is Channel.PREAMBLE else "final_answer"
            item = {"id": new_id("msg"), "type": "message", "role": "assistant", "phase": phase}
        self.items.append(item | {"content": [], "status": "in_progress"})
        yield self._item("output_item.added")
        yield self._event("content_part.added", content_index=0, part=_part(channel, ""))

    def _open_call(self, index: int, name: str) -> Iterator[dict[str, Any]]:
        self._kind = index
        item = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call")}
        if name in self._namespaces:
            item["namespace"] = self._namespaces[name]
        self.items.append(item | {"name": name, "arguments": "", "status": "in_progress"})
        yield self._item("output_item.added")

    def _item(self, name: str) -> dict[str, Any]:
        index = len(self.items) - 1
        return {"type": f"response.{name}", "output_index": index, "item": dict(self.items[-1])}

    def _event(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        where = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **where, **fields}


def _name(channel: Channel) -> str:
    return "reasoning_text" if channel is Channel.REASONING else "output_text"


def _part(channel: Channel, text: str) -> dict[str, Any]:
    if channel is Channel.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _at(channel: Channel) -> dict[str, Any]:
    """What the events of a text have besides the text."""
    return {"content_index": 0} | ({} if channel is Channel.REASONING else {"logprobs": []})
