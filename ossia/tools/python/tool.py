"""The tool `python` as gpt-oss knows it, over the sandbox."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from ossia.errors import OssiaError
from ossia.tools.python.sandbox import Limits, check, run
from ossia.tools.toolset import Caller, Function, Namespace, Result

_MOST_AT_ONCE = 4  # runs; more wait
_DESCRIPTION = """Use this tool to execute Python code in your chain of thought. The code will not \
be shown to the user. This tool should be used for internal reasoning, but not for code that is \
intended to be visible to the user (e.g. when creating plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateless \
environment, and what it prints will be returned to you, with the value of its last expression. \
python will respond with the output of the execution or time out after {seconds:.1f} seconds. \
Nothing is kept between calls: each must contain all of its code. Internet access for this session \
is disabled."""


class Python:
    """The toolset. Raises OssiaError where code cannot be run safely."""

    label = "python"

    def __init__(self, limits: Limits = Limits()) -> None:
        check()
        self._limits = limits
        # Threads of its own: those that asyncio shares must stay free for other work.
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, "python")
        description = _DESCRIPTION.format(seconds=limits.seconds)
        self.namespace = Namespace("python", description)
        code = {"type": "string", "description": "Python source code"}
        schema = {"type": "object", "properties": {"code": code}, "required": ["code"]}
        self.functions = (Function("python", description, schema),)

    def begin(self) -> Caller:
        """See Toolset. Calls share nothing. A call that is cancelled ends its process."""

        async def call(_name: str, arguments: str) -> Result:
            stop = threading.Event()
            try:
                loop = asyncio.get_running_loop()
                code = code_of(arguments)
                return await loop.run_in_executor(self._threads, self._run, code, stop)
            except OssiaError as error:
                return Result(f"error: {error}", is_error=True)
            finally:
                stop.set()

        return call

    def _run(self, code: str, stop: threading.Event) -> Result:
        ran = run(code, self._limits, stop)
        output = ran.output
        if ran.end is not None:
            output += f"\n[The run was ended: {ran.end}.]"
        elif not output:
            output = "[The code printed nothing. Print what you want to see.]"
        return Result(output, is_error=ran.end is not None or ran.exit_code != 0)


def code_of(arguments: str) -> str:
    """The code of a call: the bare code, as gpt-oss writes it, or an object that holds it."""
    try:
        values = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(values, dict) and [*values] == ["code"] and isinstance(values["code"], str):
        return values["code"]
    return arguments
