"""The one event stream that a reply becomes: text and calls, for terminal and server alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Channel(StrEnum):
    """Who a piece of text is for."""

    REASONING = "reasoning"  # harmony's analysis, Qwen's <think>
    PREAMBLE = (
        "preamble"  # harmony's commentary without a recipient: shown to the user between tool calls
    )
    FINAL = "final"  # the answer; also whatever malformed output degrades to


@dataclass(frozen=True)
class TextDelta:
    """More text on a channel; never half a UTF-8 character."""

    channel: Channel
    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """Call `index` (0, 1, … in the reply) of the tool `name` begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of the arguments of call `index`: usually JSON, passed on as the model wrote it."""

    index: int
    arguments: str


Event = TextDelta | ToolCallStart | ToolCallDelta
