"""`truncation: "auto"`: a conversation that is too long loses its oldest turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Messages = Sequence[dict[str, Any]]


def droppable(messages: Messages) -> list[list[int]]:
    """The places of messages that may be left out, together, oldest first: the turns before the
    last, and then the calls of the last turn, each with its results, but for the newest.

    What the system and the developer say belongs to none, nor does the last question.
    """
    parts: list[list[int]] = [[]]  # turns, and parts of the last
    part_of: dict[str, list[int]] = {}  # of each call
    questions = [n for n, message in enumerate(messages) if message["role"] == "user"]
    last = questions[-1] if questions else -1
    for n, message in enumerate(messages):
        role = message["role"]
        if role in ("system", "developer"):
            continue
        part = part_of.get(message["tool_call_id"], parts[-1]) if role == "tool" else parts[-1]
        if role == "user" or (role == "assistant" and n > last):
            part = []
            parts.append(part)
        if n != last:
            part.append(n)
        for call in message.get("tool_calls") or ():
            part_of[call["id"]] = part
    return [part for part in parts[:-1] if part]


def fitted(messages: Messages, make: Callable[[Messages], T], fits: Callable[[T], bool]) -> T:
    """What `make` makes of the messages without as few of the oldest parts as will fit; without
    all of them if nothing fits.
    """
    made = make(messages)
    if fits(made):
        return made
    parts = droppable(messages)
    low, high = 1, len(parts)  # so many parts go: fewer than low are too few, high are enough
    while low <= high:
        middle = (low + high) // 2
        gone = {n for part in parts[:middle] for n in part}
        tried = make([message for n, message in enumerate(messages) if n not in gone])
        if fits(tried) or middle == len(parts):
            made, high = tried, middle - 1
        else:
            low = middle + 1
    return made
