"""A reply's events as a reader sees them: text by channel, and calls with their arguments."""

from __future__ import annotations

from ossia.text import Event, Parser, TextDelta, Tokenizer, ToolCallDelta, ToolCallStart


def read(parser: Parser, ids: list[int]) -> list[tuple[str, str]]:
    """(channel or 'call NAME', text) of each part; neighbouring deltas joined."""
    events: list[Event] = []
    for id in ids:
        events += parser.push(id)
    events += parser.finish()
    parts: list[tuple[str, str]] = []
    calls = 0
    for event in events:
        match event:
            case TextDelta(channel, text):
                assert text, "an event says something"
                if parts and parts[-1][0] == channel:
                    text = parts.pop()[1] + text
                parts.append((str(channel), text))
            case ToolCallStart(index, name):
                assert index == calls, "calls are numbered in order"
                calls += 1
                parts.append((f"call {name}", ""))
            case ToolCallDelta(index, arguments):
                assert index == calls - 1
                name, text = parts.pop()
                parts.append((name, text + arguments))
    return parts


def read_text(parser: Parser, tokenizer: Tokenizer, text: str) -> list[tuple[str, str]]:
    """`read` of a reply written as text, control tokens recognised."""
    return read(parser, tokenizer.encode_control(text))
