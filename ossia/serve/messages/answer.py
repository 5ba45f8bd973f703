"""A reply's events as the content blocks of a message, and as the events that tell of them."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ossia.api import Finished
from ossia.serve.messages.wire import MessagesRequest
from ossia.serve.rounds import ReplyEvent
from ossia.serve.running import Running
from ossia.text import Channel, TextDelta, ToolCallDelta, ToolCallStart

Told = dict[str, Any]


class Answer:
    """One message as it comes to be."""

    def __init__(self, body: MessagesRequest, model: str, prompt_tokens: int) -> None:
        self._body = body
        self._blocks: list[dict[str, Any]] = []
        self._open: Channel | int | None = None  # what the last block holds: a channel, or a call
        self._text: list[str] = []
        self.message = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": {
                "input_tokens": prompt_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }

    async def events(self, running: Running) -> AsyncIterator[Told]:
        """The events, in the official order."""
        yield {"type": "message_start", "message": dict(self.message)}
        yield PING
        async for _, event in running.events():
            if not isinstance(event, Finished):
                for told in self._read(event):
                    yield told
                continue
            for told in self._close():
                yield told
            self._end(event, running.timed_out)
            why = ("stop_reason", "stop_sequence", "stop_details")
            delta = {key: self.message[key] for key in why}
            yield {"type": "message_delta", "delta": delta, "usage": self.message["usage"]}
            yield {"type": "message_stop"}

    def _read(self, event: ReplyEvent) -> Iterator[Told]:
        match event:
            case TextDelta(Channel.REASONING, _) if not self._body.shows_thinking:
                yield from self._close()
            case TextDelta(channel, text):
                if self._open is not channel:
                    yield from self._close()
                    yield from self._begin(channel, _block(channel))
                self._text.append(text)
                key = _key(channel)
                yield self._delta({"type": f"{key}_delta", key: text})
            case ToolCallStart(index, name):
                yield from self._close()
                id = f"toolu_{uuid.uuid4().hex[:24]}"
                yield from self._begin(
                    index, {"type": "tool_use", "id": id, "name": name, "input": {}}
                )
            case ToolCallDelta(_, arguments):
                self._text.append(arguments)

    def _begin(self, kind: Channel | int, block: dict[str, Any]) -> Iterator[Told]:
        self._open = kind
        self._blocks.append(block)
        index = len(self._blocks) - 1
        yield {"type": "content_block_start", "index": index, "content_block": dict(block)}

    def _close(self) -> Iterator[Told]:
        """End the block that is open, if one is."""
        if self._open is None:
            return
        block, text = self._blocks[-1], "".join(self._text)
        if not isinstance(self._open, Channel):
            block["input"] = _object(text)
            written = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            yield self._delta({"type": "input_json_delta", "partial_json": written})
        else:
            block[_key(self._open)] = text
            if self._open is Channel.REASONING:
                block["signature"] = _signature(text)
                yield self._delta({"type": "signature_delta", "signature": block["signature"]})
        self._open, self._text = None, []
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _delta(self, delta: dict[str, Any]) -> Told:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end(self, end: Finished, timed_out: bool) -> None:
        reason = "tool_use" if end.reason == "tool_calls" else "end_turn"
        if end.reason == "length":
            full = end.completion_tokens < self._body.max_tokens and not timed_out
            reason = "model_context_window_exceeded" if full else "max_tokens"
        elif end.stop_string is not None:
            reason = "stop_sequence"
            self.message["stop_sequence"] = end.stop_string
        self.message["content"], self.message["stop_reason"] = self._blocks, reason
        self.message["usage"] = {
            "input_tokens": end.prompt_tokens - end.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": end.cached_tokens,
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"thinking_tokens": end.reasoning_tokens},
        }


PING: Told = {"type": "ping"}


def _key(channel: Channel) -> str:
    return "thinking" if channel is Channel.REASONING else "text"


def _block(channel: Channel) -> dict[str, Any]:
    if channel is Channel.REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call; under a name of their own if they are no object."""
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments, strict=False)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}


def _signature(thinking: str) -> str:
    """What clients expect beside what was thought: a digest of it."""
    digest = hashlib.sha256(thinking.encode("utf-8", "surrogatepass")).digest()
    return base64.b64encode(digest).decode()
