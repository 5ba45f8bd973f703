"""Functions of one string as a toolset."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ossia.tools import Tool, call
from ossia.tools.toolset import Caller, Function, Result


class Functions:
    """The toolset of some functions that run on this machine and change nothing."""

    label = "ossia"
    namespace = None

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        described = [tool.schema()["function"] for tool in tools]
        self.functions = tuple(Function(**function) for function in described)

    def begin(self) -> Caller:
        """See Toolset."""

        async def run(name: str, arguments: str) -> Result:
            text = await asyncio.to_thread(call, self._tools, name, arguments)
            return Result(text, text.startswith("error:"))

        return run
