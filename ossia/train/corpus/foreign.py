"""Formats of training data that other programs read, by the keys of a line, and what to write
instead.
"""

from __future__ import annotations

from typing import Any

_MESSAGES = (
    'write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
)

# The keys that tell a format, its name, and where its parts go.
_FORMATS = (
    (
        {"conversations"},
        "ShareGPT",
        '"from" is the role (human: user, gpt: assistant), "value" the',
    ),
    ({"instruction", "output"}, "Alpaca", "instruction and input are the user's, output the"),
    ({"prompt", "completion"}, "prompt and completion", "they are the user's and the assistant's"),
    ({"prompt", "response"}, "prompt and response", "they are the user's and the assistant's"),
    ({"chosen", "rejected"}, "preferences", "chosen is the assistant's"),
)


def describe(value: Any) -> str:
    """The end of an error about a line that is no conversation: what it is instead; "" if that is
    unknown.
    """
    if isinstance(value, list):
        return "; it is a JSON array: write each element on a line of its own (jq -c '.[]')"
    if not isinstance(value, dict):
        return ""
    for keys, name, parts in _FORMATS:
        if keys <= value.keys():
            return f"; it looks like {name}: {_MESSAGES}, where {parts} content"
    if isinstance(value.get("text"), str):
        return "; it is a text, which ossia train reads"
    return ""
