"""The events that every reply becomes, whatever its format: text and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Channel(StrEnum):
    """What a piece of text is to its reader."""

    REASONING = "reasoning"  # harmony's analysis, Qwen's <think>
    # harmony's commentary without a recipient, which users see between tool calls
    PREAMBLE = "preamble"
    FINAL = "final"  # the answer; malformed output becomes part of it too


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
    """More of the arguments of call `index`, usually JSON, exactly as the model wrote them."""

    index: int
    arguments: str


Event = TextDelta | ToolCallStart | ToolCallDelta
