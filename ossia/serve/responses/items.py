"""Items as the messages of a chat, and a reply's events as the items and events of a response."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.serve.hosted import Offer
from ossia.serve.responses.hosted import HostedItems, called
from ossia.serve.responses.tools import Offered, flat_name
from ossia.serve.rounds import HostedDelta, HostedResult, HostedRun, HostedStart, ReplyEvent
from ossia.text import Channel, TextDelta, ToolCallDelta, ToolCallStart

Items = list[dict[str, Any]]


def messages(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of Chat Completions that say the same. Reasoning and calls that follow one
    another are one message of the assistant's.
    """
    said: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's message that goes on
    unmarked = False  # it has words that may be an answer, or go before a call
    for item in items:
        kind = item.get("type", "message")
        if kind == "mcp_list_tools":
            continue
        if kind == "reasoning":
            if turn is None or unmarked or turn.get("tool_calls"):
                turn, unmarked = _turn(said), False
            parts = item.get("content") or item.get("summary") or ()
            turn["reasoning"] = turn.get("reasoning", "") + _text(parts)
        elif kind == "function_call":
            turn, unmarked = _turn(said) if turn is None else turn, False
            name = flat_name(item.get("namespace"), item["name"])
            function = {"name": name, "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
        elif kind in ("mcp_call", "code_interpreter_call"):
            turn = _turn(said) if turn is None else turn
            name, arguments, output = called(item)
            function = {"name": name, "arguments": arguments}
            call = {"id": item["id"], "type": "function", "function": function}
            turn.setdefault("tool_calls", []).append(call)
            said.append({"role": "tool", "tool_call_id": item["id"], "content": output})
            turn, unmarked = None, False
        elif kind == "function_call_output":
            result = {"tool_call_id": item["call_id"], "content": _text(item["output"])}
            said.append({"role": "tool", **result})
            turn = None
        elif item["role"] == "assistant":
            if turn is None or turn["content"] or turn.get("tool_calls"):
                turn = _turn(said)
            turn["content"] = _text(item["content"])
            unmarked = item.get("phase") is None
            if item.get("phase") == "final_answer":
                turn = None
        else:
            said.append({"role": item["role"], "content": _text(item["content"])})
            turn = None
    return said


def _turn(said: list[dict[str, Any]]) -> dict[str, Any]:
    """A new message of the assistant's, the last of those that were said."""
    said.append({"role": "assistant", "content": ""})
    return said[-1]


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def item_id(kind: str, response: str, place: str) -> str:
    """The id of an item, from which `response_of` finds its response."""
    return f"{kind}_{response.partition('_')[2]}{place}"


def response_of(item: str) -> str:
    """The id of the response that an item's id was made for, if it was made by `item_id`."""
    return f"resp_{item.partition('_')[2][:32]}"


@dataclass(frozen=True)
class Style:
    """How the items of a response are written. logprobs: the log-probabilities of the text that
    was shown last; None where they are not asked for. seal: encrypts reasoning, where that is.
    """

    response: str  # its id
    offered: Offered
    logprobs: Callable[[], list[dict[str, Any]]] | None = None
    seal: Callable[[str], str] | None = None


class OutputItems:
    """A reply's items, and the events that tell of them, in the official order."""

    def __init__(self, style: Style) -> None:
        self.items: Items = []
        self._style = style
        self._kind: Channel | int | None = None  # of the item that is open: a channel, or a call
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._hosted = HostedItems(self.items, self._id)

    def lists(self, offer: Offer, known: Collection[str]) -> Iterator[dict[str, Any]]:
        """The tools of the server's that can be called, but those of the sets that are known."""
        return self._hosted.lists(offer, known)

    def read(self, event: ReplyEvent) -> Iterator[dict[str, Any]]:
        """What the event makes known."""
        match event:
            case HostedStart() | HostedDelta() | HostedRun() | HostedResult():
                yield from self.close()
                yield from self._hosted.read(event)
            case TextDelta(channel, text):
                if self._kind is not channel:
                    yield from self.close()
                    yield from self._open_text(channel)
                self._text.append(text)
                more: dict[str, Any] = {}
                if channel is not Channel.REASONING:
                    more["logprobs"] = self._style.logprobs() if self._style.logprobs else []
                    self._logprobs += more["logprobs"]
                yield self._event(f"{_name(channel)}.delta", content_index=0, delta=text, **more)
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
        kind, item = self._kind, self.items[-1]
        if isinstance(kind, Channel):
            part = self._part(kind)
            more = {} if kind is Channel.REASONING else {"logprobs": self._logprobs}
            yield self._event(f"{_name(kind)}.done", content_index=0, text=part["text"], **more)
            yield self._event("content_part.done", content_index=0, part=part)
            if kind is Channel.REASONING and self._style.seal:
                item["encrypted_content"] = self._style.seal(part["text"])
        else:
            done = {"name": item["name"], "arguments": "".join(self._text)}
            yield self._event("function_call_arguments.done", **done)
        item |= self._filled(status)
        self._kind, self._text, self._logprobs = None, [], []
        yield self._item("output_item.done")

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        """End the item that is open, and calls that are not complete."""
        yield from self.close(status)
        yield from self._hosted.end()

    def so_far(self) -> Items:
        """The items as they are now, with what the open one holds."""
        if self._kind is None:
            return self.items
        return [*self.items[:-1], self.items[-1] | self._filled("in_progress")]

    def _filled(self, status: str) -> dict[str, Any]:
        """What the open item holds."""
        if isinstance(self._kind, Channel):
            return {"content": [self._part(self._kind)], "status": status}
        return {"arguments": "".join(self._text), "status": status}

    def _open_text(self, channel: Channel) -> Iterator[dict[str, Any]]:
        if channel is Channel.REASONING:
            item = {"id": self._id("rs"), "type": "reasoning", "summary": []}
        else:
            phase = "commentary" if channel is Channel.PREAMBLE else "final_answer"
            item = {"id": self._id("msg"), "type": "message", "role": "assistant", "phase": phase}
        self._kind = channel
        self.items.append(item | {"content": [], "status": "in_progress"})
        yield self._item("output_item.added")
        yield self._event("content_part.added", content_index=0, part=self._part(channel))

    def _open_call(self, index: int, name: str) -> Iterator[dict[str, Any]]:
        item = {"id": self._id("fc"), "type": "function_call", "call_id": new_id("call")}
        namespace, name = self._style.offered.origin(name)
        if namespace is not None:
            item["namespace"] = namespace
        self._kind = index
        self.items.append(item | {"name": name, "arguments": "", "status": "in_progress"})
        yield self._item("output_item.added")

    def _part(self, channel: Channel) -> dict[str, Any]:
        text = "".join(self._text)
        if channel is Channel.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": [*self._logprobs],
        }

    def _id(self, kind: str) -> str:
        return item_id(kind, self._style.response, f"{len(self.items):04x}")

    def _item(self, name: str) -> dict[str, Any]:
        index = len(self.items) - 1
        return {"type": f"response.{name}", "output_index": index, "item": dict(self.items[-1])}

    def _event(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        where = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **where, **fields}


def _name(channel: Channel) -> str:
    return "reasoning_text" if channel is Channel.REASONING else "output_text"
