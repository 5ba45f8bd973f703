"""Random chats in the form of Chat Completions, drawn by a seed: what people and programs send."""

from __future__ import annotations

import random
from typing import Any

_TEXTS = (
    "Hi",
    "What is 2 + 2?",
    " leading and trailing \n",
    "two\nlines\n\nand a gap",
    "Grüße, 世界 👩🏽‍🚀 \u00a0",
    "if a < b and b > c: print('<p>')",
    "He said \"yes\" \\ 'no'\t{}",
    "{{ messages }} {% raw %}",
    "",
)
_VALUES: tuple[Any, ...] = (
    "Ulm",
    "a < b",
    "é\n",
    3,
    -1.5,
    True,
    None,
    [1, "two"],
    {"k": {"n": [None]}},
)
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather of a place, "now".',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a town"},
                    "days": {"type": "integer", "default": 1},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "more": {"type": "object", "properties": {"x": {"type": "array"}}},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    },
)


class Histories:
    """Draws chats; the same seed draws the same."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def draw(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools."""
        chance = self._random.random
        tools = list(_TOOLS[: 1 + (chance() < 0.5)]) if chance() < 0.5 else None
        messages: list[dict[str, Any]] = []
        if chance() < 0.5:
            messages.append({"role": "system", "content": self._text() or "Be brief."})
        for _ in range(self._random.randint(1, 3)):
            messages.append({"role": "user", "content": self._text() or "?"})
            if tools and chance() < 0.6:
                messages += self._calls(tools)
            messages.append(self._reply({"content": self._text()}))
        if chance() < 0.6:  # a prompt, not a conversation to learn from
            messages.append({"role": "user", "content": self._text()})
        return messages, tools

    def _text(self) -> str:
        return self._random.choice(_TEXTS)

    def _reply(self, more: dict[str, Any]) -> dict[str, Any]:
        reasoning = (
            {"reasoning_content": self._text() or "Hm."} if self._random.random() < 0.4 else {}
        )
        return {"role": "assistant", **reasoning, **more}

    def _calls(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = [
            self._random.choice(tools)["function"]["name"]
            for _ in range(self._random.randint(1, 2))
        ]
        calls = [
            {
                "id": f"call{n}abcd",
                "type": "function",
                "function": {"name": name, "arguments": self._arguments() if name != "now" else {}},
            }
            for n, name in enumerate(names)
        ]
        said = self._random.choice(["", self._text()])
        return [
            self._reply({"content": said, "tool_calls": calls}),
            *(
                {
                    "role": "tool",
                    "tool_call_id": c["id"],
                    "name": c["function"]["name"],
                    "content": self._text(),
                }
                for c in calls
            ),
        ]

    def _arguments(self) -> dict[str, Any]:
        keys = self._random.sample(["place", "days", "unit", "more"], self._random.randint(1, 3))
        return {key: self._random.choice(_VALUES) for key in keys}
