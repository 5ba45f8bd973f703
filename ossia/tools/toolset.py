"""What runs a model's calls of tools: the protocol of a set of tools under one label."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ossia.errors import OssiaError


@dataclass(frozen=True)
class Result:
    """What a call gave, as the model reads it. is_error: the model may do better."""

    text: str
    is_error: bool = False


# Runs one call, by the tool's name and the arguments as the model wrote them. It never raises: what
# goes wrong is a result.
Caller = Callable[[str, str], Awaitable[Result]]


@dataclass(frozen=True)
class Function:
    """One tool as the model sees it. parameters: a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def schema(self, name: str | None = None) -> dict[str, Any]:
        """The description in Chat Completions' form, under another name if one is given."""
        function = {
            "name": name or self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Namespace:
    """How gpt-oss was trained to see a set of tools: under a name of their own, described in the
    system message and called within its reasoning. Without functions it is called itself.
    """

    name: str
    description: str
    functions: tuple[Function, ...] = ()


class Toolset(Protocol):
    """Tools that are run for a model."""

    @property
    def label(self) -> str:
        """What clients see the tools under."""
        ...

    @property
    def functions(self) -> Sequence[Function]:
        """The tools by the names that calls have."""
        ...

    @property
    def namespace(self) -> Namespace | None:
        """The same tools as gpt-oss knows them, if it was trained with them."""
        ...

    def begin(self) -> Caller:
        """What runs the calls of one reply, which may remember the earlier ones."""
        ...


def read_arguments(arguments: str, function: Function) -> dict[str, Any]:
    """The arguments of a call, as its function's schema names them. Raises OssiaError."""
    try:
        values = json.loads(arguments or "{}", strict=False)
    except (ValueError, RecursionError) as error:
        raise OssiaError("the arguments are not JSON") from error
    if not isinstance(values, dict):
        raise OssiaError("the arguments are no JSON object")
    known = function.parameters["properties"]
    if unknown := sorted(values.keys() - known.keys()):
        raise OssiaError(f"{function.name} has no parameter {', '.join(unknown)}")
    for name in function.parameters.get("required", ()):
        if name not in values:
            raise OssiaError(f"{function.name} needs {name}")
    return values
