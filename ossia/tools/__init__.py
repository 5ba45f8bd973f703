"""Functions that a model may call in a chat. They run on this machine and change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.errors import OssiaError
from ossia.tools.calculate import calculate
from ossia.tools.documentation import documentation


@dataclass(frozen=True)
class Tool:
    """A function of one string: its description for the model, and what runs."""

    name: str
    description: str
    parameter: str
    function: Callable[[str], str]

    def schema(self) -> dict[str, Any]:
        """The description in Chat Completions' form."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": {self.parameter: {"type": "string"}},
                "required": [self.parameter],
            },
        }
        return {"type": "function", "function": function}


BUILT_IN = (
    Tool("calculate", "Calculates an arithmetic expression.", "expression", calculate),
    Tool("documentation", "Shows the documentation of a Python name.", "name", documentation),
)


def call(tools: Sequence[Tool], name: str, arguments: str) -> str:
    """The result of a call with `arguments` as the model wrote them. A mistake in the call is a
    result too, which begins with "error:", because the model can correct it.
    """
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None:
        return f"error: there is no tool {name}; there are {', '.join(t.name for t in tools)}"
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return "error: the arguments are not JSON"
    if not isinstance(values, dict) or set(values) != {tool.parameter}:
        return f"error: {name} takes an object with {tool.parameter} alone"
    if not isinstance(value := values[tool.parameter], str):
        return f"error: {tool.parameter} must be a string"
    try:
        return tool.function(value)
    except OssiaError as error:
        return f"error: {error}"
