"""What comes out: completions, replies and the event that ends a stream; plain values."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from ossia.engine import TokenLogprob
from ossia.text import Channel, Event, TextDelta, ToolCall, ToolCallDelta, ToolCallStart

FinishReason = Literal["stop", "length", "tool_calls", "interrupted"]


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt. `token_ids` are as sampled: they include the id that
    ended it, and those of a stop string. prompt_logprobs: of the prompt's tokens from position
    `prompt_logprobs_from` on, the second by default.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_tokens: int
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Finished:
    """The last event of every stream. cached_tokens: those of the prompt that the prefix cache had.
    reasoning_tokens: those of the completion that are text of the reasoning. malformed: the model
    broke the rules of its chat format. stop_string: the one that ended the answer, if one did.
    Seconds are this stream's wall time up to its first token, and from there to its end.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    reasoning_tokens: int = field(default=0, compare=False)
    malformed: bool = field(default=False, compare=False)
    stop_string: str | None = field(default=None, compare=False)
    prefill_seconds: float = field(default=0.0, compare=False)
    decode_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Reply:
    """One assistant turn: the answer, the reasoning before it, and words to the user before a tool
    call (`preamble`).
    """

    content: str
    reasoning: str
    preamble: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    def message(self) -> dict[str, Any]:
        """This turn as a message to append to the conversation."""
        shown = "\n\n".join(part for part in (self.preamble, self.content) if part)
        message: dict[str, Any] = {"role": "assistant", "content": shown}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message


class ReplyBuilder:
    """Gathers a stream's events, all or as many as came, into a Reply."""

    def __init__(self) -> None:
        self._texts = {channel: [] for channel in Channel}
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._finished = Finished("interrupted", 0, 0)

    def add(self, event: Event | Finished) -> None:
        match event:
            case TextDelta(channel, piece):
                self._texts[channel].append(piece)
            case ToolCallStart(index, name):
                self._calls[index] = (f"call_{uuid.uuid4().hex[:24]}", name, [])
            case ToolCallDelta(index, arguments):
                self._calls[index][2].append(arguments)
            case Finished():
                self._finished = event

    def reply(self) -> Reply:
        return Reply(
            content="".join(self._texts[Channel.FINAL]),
            reasoning="".join(self._texts[Channel.REASONING]),
            preamble="".join(self._texts[Channel.PREAMBLE]),
            tool_calls=tuple(
                ToolCall(name, "".join(parts), id) for id, name, parts in self._calls.values()
            ),
            finish_reason=self._finished.reason,
            prompt_tokens=self._finished.prompt_tokens,
            completion_tokens=self._finished.completion_tokens,
        )
