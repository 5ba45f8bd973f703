"""The tools that the server runs: what a request's model is offered of them, and what runs them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ossia.errors import OssiaError, brief
from ossia.text import ToolDescription, ToolNamespace, well_formed
from ossia.tools.toolset import Caller, Function, Namespace, Result, Toolset

_log = logging.getLogger(__name__)

MOST_CALLS = 32  # in one reply
_LONGEST_NAME = 64
_MOST_TEXT = 1 << 16  # characters of a result


@dataclass(frozen=True)
class HostedTool:
    """A tool by the name that the model sees; `name_there` is its own among those of its set.
    offered: it is one of them, and not just any name that the model wrote.
    """

    name: str
    name_there: str
    toolset: Toolset
    function: Function
    offered: bool = True

    @property
    def label(self) -> str:
        """The name of its set."""
        return self.toolset.label

    @property
    def is_python(self) -> bool:
        """Whether its argument is code."""
        return self.toolset.namespace is not None and not self.toolset.namespace.functions


class Hosted:
    """The tools of some sets. Two of one name have their sets' labels before it. most_calls: in
    one reply.
    """

    def __init__(self, toolsets: Sequence[Toolset] = (), most_calls: int = MOST_CALLS) -> None:
        self._toolsets, self._most_calls = toolsets, most_calls
        self.tools = tuple(_named(toolsets))

    @property
    def labels(self) -> dict[str, list[HostedTool]]:
        """The tools of each set."""
        return {
            toolset.label: [tool for tool in self.tools if tool.toolset is toolset]
            for toolset in self._toolsets
        }

    def offer(self, taken: Collection[str], native: bool, most_calls: int | None = None) -> Offer:
        """What a model is offered beside the client's own functions, whose names are `taken`: these
        stand in for tools of the same name. native: the model knows some sets in their own form.
        """
        kept = [
            toolset
            for toolset in self._toolsets
            if toolset.namespace is None or toolset.namespace.name not in taken
        ]
        tools = [t for t in self.tools if t.toolset in kept and t.name not in taken]
        own = [t.namespace for t in kept if native and t.namespace is not None]
        functions = [
            tool.function.schema(tool.name)
            for tool in tools
            if not native or tool.toolset.namespace is None
        ]
        most = self._most_calls if most_calls is None else min(most_calls, self._most_calls)
        return Offer(tuple(tools), functions, tuple(map(_described, own)), most)


def _named(toolsets: Sequence[Toolset]) -> list[HostedTool]:
    counts = Counter(function.name for toolset in toolsets for function in toolset.functions)
    tools: dict[str, HostedTool] = {}
    for toolset in toolsets:
        for function in toolset.functions:
            name = function.name
            if counts[name] > 1 and toolset.namespace is None:
                name = f"{toolset.label}_{name}"
            name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:_LONGEST_NAME]
            if name in tools:
                raise OssiaError(f"two tools of the server would have the name {name}")
            tools[name] = HostedTool(name, function.name, toolset, function)
    return [*tools.values()]


def _described(namespace: Namespace) -> ToolNamespace:
    functions = (
        ToolDescription(function.name, function.description, function.parameters)
        for function in namespace.functions
    )
    return ToolNamespace(namespace.name, namespace.description, tuple(functions))


@dataclass(frozen=True)
class Offer:
    """What one request's model is offered: functions in Chat Completions' form, and tools that it
    was trained with.
    """

    tools: tuple[HostedTool, ...]
    functions: Sequence[Mapping[str, Any]]
    built_in: tuple[ToolNamespace, ...]
    most_calls: int

    def find(self, name: str) -> HostedTool | None:
        """The tool that a call names; None if it is the client's. What is called within the name of
        a set that the model knows is the set's, which says what it has.
        """
        for tool in self.tools:
            namespace = tool.toolset.namespace
            if name == tool.name:
                return tool
            if namespace is not None and name.startswith(f"{namespace.name}."):
                return HostedTool(name, name, tool.toolset, tool.function, offered=False)
        return None


@dataclass
class Calls:
    """The calls of one reply."""

    offer: Offer
    begun: int = 0
    _callers: dict[str, Caller] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Whether the model goes on calling though it was told to answer."""
        return self.begun > self.offer.most_calls + 1

    async def run(self, tool: HostedTool, arguments: str) -> Result:
        """The result of a call, of sound text and no longer than a model can read."""
        self.begun += 1
        if self.begun > self.offer.most_calls:
            return Result("error: this reply can call no more tools: answer now", is_error=True)
        try:
            if tool.label not in self._callers:
                self._callers[tool.label] = tool.toolset.begin()
            result = await self._callers[tool.label](tool.name_there, arguments)
        except Exception as error:  # the tool's fault, of which the reply must not die
            _log.error("the tool %s failed", tool.name, exc_info=error)
            return Result(f"error: the tool failed: {brief(error)}", is_error=True)
        text = well_formed(result.text)
        if len(text) > _MOST_TEXT:
            text = f"{text[:_MOST_TEXT]}\n[... cut off ...]"
        return Result(text, result.is_error)
