"""Functions as the model is offered them, and the names of those that stand in a namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ossia.errors import OssiaError
from ossia.serve.responses.wire import FunctionTool, NamespaceTool, Tool


def flat_name(namespace: str | None, name: str) -> str:
    """The one name that the model sees. Codex joins names in the same way where it has to (its
    `ToolName::canonical_flat_name`).
    """
    return name if namespace is None else f"{namespace.rstrip('_')}__{name.lstrip('_')}"


class Offered:
    """The functions of a request, those of namespaces under flat names. Raises OssiaError for two
    of one name.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.functions: list[dict[str, Any]] = []  # in Chat Completions' form
        self._origins: dict[str, tuple[str | None, str]] = {}
        loose: dict[str, list[tuple[str | None, str]]] = {}  # under other names that models write
        for space, tool in _functions(tools):
            namespace = space.name if space else None
            flat = flat_name(namespace, tool.name)
            if flat in self._origins:
                raise OssiaError(f"tools: there are two functions of the name {flat!r}")
            self._origins[flat] = namespace, tool.name
            self.functions.append(_described(tool, flat, space))
            for name in (tool.name, f"{namespace}.{tool.name}"):
                loose.setdefault(name, []).append((namespace, tool.name))
        for name, origins in loose.items():
            if len(origins) == 1:
                self._origins.setdefault(name, origins[0])

    def origin(self, name: str) -> tuple[str | None, str]:
        """Namespace and name of the function that the model calls by `name`."""
        return self._origins.get(name, (None, name))


def _functions(tools: Sequence[Tool]) -> Iterator[tuple[NamespaceTool | None, FunctionTool]]:
    for tool in tools:
        if isinstance(tool, FunctionTool):
            yield None, tool
        elif isinstance(tool, NamespaceTool):
            for function in tool.tools:
                yield tool, function


def _described(tool: FunctionTool, name: str, space: NamespaceTool | None) -> dict[str, Any]:
    """The function in Chat Completions' form. A namespace's description stands before that of its
    first function.
    """
    function = tool.model_dump(exclude={"type"}, exclude_unset=True) | {"name": name}
    if space is not None and space.description and tool is space.tools[0]:
        parts = (space.description, function.get("description"))
        function["description"] = "\n\n".join(filter(None, parts))
    return {"type": "function", "function": function}
