"""Tools of MCP servers: of a command that speaks over its stdin and stdout, or of a URL.

The connections live in a thread of their own, so that any event loop, or none, can use the tools.
A server that ends is started, or reached, again by the next call.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ossia.errors import OssiaError
from ossia.tools.toolset import Caller, Function, Result

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client import Transport
    from mcp_types import CallToolResult, Tool

T = TypeVar("T")

_CONNECT_SECONDS = 60.0
_CALL_SECONDS = 120.0
_CLOSE_SECONDS = 10.0
_MOST_PAGES = 100  # of a list of tools
_LABEL = re.compile(r"([A-Za-z][\w-]*)=")


@dataclass(frozen=True)
class Address:
    """Where a server is: one of a URL and a command with its arguments. label: its name for
    clients, if one was given.
    """

    label: str | None
    url: str | None
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Address:
        """Read `URL` or `command arguments`, with `label=` before it if it is to have a name of its
        own. Raises OssiaError.
        """
        match = _LABEL.match(text)
        label, rest = (match[1], text[match.end() :]) if match else (None, text)
        if rest.startswith(("http://", "https://")):
            return cls(label, rest)
        try:
            command = tuple(shlex.split(rest))
        except ValueError as error:
            raise OssiaError(f"--mcp {text}: the command cannot be read ({error})") from error
        if not command:
            raise OssiaError("--mcp: needs a URL, or a command and its arguments")
        return cls(label, None, command)

    def __str__(self) -> str:
        return self.url or shlex.join(self.command)


class McpServers:
    """Servers, connected while the block lasts; `toolsets` are theirs. Raises OssiaError for one
    that cannot be reached, without the package `mcp` too.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise OssiaError(
                f"MCP servers need the package mcp ({error}): pip install 'ossia[mcp]'"
            ) from error
        self._connections = [_Connection(address) for address in addresses]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self.toolsets: list[McpTools] = []

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._connect())
        except BaseException:
            self._close()
            raise
        labels: set[str] = set()
        for connection in self._connections:
            tools = McpTools(connection, self._loop, labels)
            labels.add(tools.label)
            self.toolsets.append(tools)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    async def _connect(self) -> None:
        await asyncio.gather(*(connection.session() for connection in self._connections))

    def _close(self) -> None:
        async def close() -> None:
            await asyncio.gather(*(connection.close() for connection in self._connections))

        self._wait(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class McpTools:
    """The toolset of one server. taken: the labels of others."""

    namespace = None

    def __init__(
        self, connection: _Connection, loop: asyncio.AbstractEventLoop, taken: set[str]
    ) -> None:
        self._connection, self._loop = connection, loop
        name = re.sub(r"[^\w-]+", "_", connection.name).strip("_") or "mcp"
        others = (f"{name}_{n}" for n in range(2, len(taken) + 3))
        self.label = next(label for label in (name, *others) if label not in taken)
        self.functions = tuple(
            Function(tool.name, tool.description or "", tool.input_schema)
            for tool in connection.tools
        )

    def begin(self) -> Caller:
        """See Toolset."""

        async def call(name: str, arguments: str) -> Result:
            work = self._connection.call(name, arguments)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

        return call


class _Connection:
    """One server, in the loop of the connections."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.name = address.label or ""
        self.tools: list[Tool] = []
        self._opening = asyncio.Lock()
        self._client: Client | None = None
        self._leave = asyncio.Event()
        self._held: asyncio.Task[None] | None = None

    async def session(self) -> Client:
        """The connection, made if there is none. Raises OssiaError."""
        async with self._opening:
            if self._client is None:
                await self._close_held()
                ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
                self._leave = asyncio.Event()
                self._held = asyncio.create_task(self._hold(ready, self._leave))
                self._client = await ready
            return self._client

    async def close(self) -> None:
        async with self._opening:
            await self._close_held()

    async def _close_held(self) -> None:
        self._client = None
        self._leave.set()
        if self._held is not None:
            _, pending = await asyncio.wait([self._held], timeout=_CLOSE_SECONDS)
            for task in pending:
                task.cancel()

    async def _hold(self, ready: asyncio.Future[Client], leave: asyncio.Event) -> None:
        """Connect, and stay so until `leave` is set: a connection must end in the task that began
        it.
        """
        from mcp import Client

        try:
            with _transport(self._address) as server:
                await self._stay(Client(server), ready, leave)
        except BaseException as error:
            if ready.done():  # the connection broke, which calls notice
                return
            why = "it did not answer" if isinstance(error, TimeoutError) else _message(error)
            if self._address.command:
                why += "; run the command by itself to see more"
            told = f"the MCP server {self._address} cannot be used: {why}"
            ready.set_exception(OssiaError(told))

    async def _stay(
        self, made: Client, ready: asyncio.Future[Client], leave: asyncio.Event
    ) -> None:
        async with asyncio.timeout(_CONNECT_SECONDS) as limit, made as client:
            if not self.tools:
                self.tools = await _tools(client)
                self.name = self.name or (client.server_info.name if client.server_info else "")
            limit.reschedule(None)
            ready.set_result(client)
            await leave.wait()

    async def call(self, name: str, arguments: str) -> Result:
        """The result of a call; a server that cannot be reached is one too."""
        from mcp_types import CONNECTION_CLOSED

        try:
            values = json.loads(arguments or "{}", strict=False)
        except (ValueError, RecursionError):
            return Result("error: the arguments are not JSON", is_error=True)
        if not isinstance(values, dict):
            return Result("error: the arguments are no JSON object", is_error=True)
        try:
            client = await self.session()
            return _result(await client.call_tool(name, values, read_timeout_seconds=_CALL_SECONDS))
        except OssiaError as error:
            return Result(f"error: {error}", is_error=True)
        except Exception as error:
            if getattr(error, "code", CONNECTION_CLOSED) == CONNECTION_CLOSED:
                self._client = None
            return Result(f"error: {_message(error)}", is_error=True)


@contextmanager
def _transport(address: Address) -> Iterator[Transport | str]:
    """What a client connects through. What a command writes to stderr is dropped, as it may say
    what is asked and answered.
    """
    if address.url is not None:
        yield address.url
        return
    from mcp import StdioServerParameters, stdio_client

    command, *arguments = address.command
    with open(os.devnull, "w") as nowhere:
        yield stdio_client(StdioServerParameters(command=command, args=arguments), nowhere)


async def _tools(client: Client) -> list[Tool]:
    """All tools of a server, over the pages of its list."""
    tools: list[Tool] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _result(answer: CallToolResult) -> Result:
    """The text of an answer; what is no text is named."""
    parts: list[str] = []
    for block in answer.content:
        match block.type:
            case "text":
                parts.append(block.text)
            case "resource":
                text = getattr(block.resource, "text", None)
                parts.append(text if text is not None else f"[{block.resource.uri}]")
            case "resource_link":
                parts.append(f"[{block.uri}]")
            case kind:
                parts.append(f"[{kind}: {getattr(block, 'mime_type', '')}]")
    if not parts and answer.structured_content is not None:
        parts.append(json.dumps(answer.structured_content, ensure_ascii=False))
    return Result("\n".join(parts), answer.is_error)


def _message(error: BaseException) -> str:
    """What went wrong, of the first of several errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).strip() or type(error).__name__
