"""Held-out chats as questions of `ossia eval`: the last turn of each, at no effort of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from ossia.text.chat import REASONING_KEYS


def questions(chats: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A question for each chat at low effort; the same chat at other efforts differs in nothing but
    reasoning, which prompts leave out of turns that have ended.
    """
    numbers: dict[str, int] = {}
    for chat in chats:
        if chat["reasoning_effort"] != "low":
            continue
        task, messages = chat["task"], chat["messages"]
        numbers[task] = numbers.get(task, 0) + 1
        turn = max(n for n, message in enumerate(messages) if message["role"] == "user") + 1
        asked = [_without_reasoning(message) for message in messages[:turn]]
        expected = messages[turn:]
        question = {
            "id": f"{task}-{numbers[task]}",
            "task": task,
            "messages": asked,
            "answer": expected[-1]["content"],
            "scorer": "exact",
            "date": chat["date"],
        }
        if chat.get("tools"):
            question["tools"] = chat["tools"]
        if results := [*_results(expected)]:
            question["results"] = results
        yield question


def _without_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in REASONING_KEYS}


def _results(expected: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for message, following in pairwise(expected):
        for call in message.get("tool_calls", ()):
            yield {**call["function"], "result": following["content"]}
