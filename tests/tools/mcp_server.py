"""A small MCP server, over stdio or, given a port, over HTTP."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.types import ImageContent, TextContent

server = MCPServer("little", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Raises an error."""
    raise ValueError("it is broken")


@server.tool()
def picture() -> list[Any]:
    """Shows a picture."""
    image = ImageContent(type="image", data="aGk=", mime_type="image/png")
    return [TextContent(type="text", text="look:"), image]


@server.tool()
def environment(name: str) -> str:
    """Reads a variable."""
    return os.environ.get(name, "unset")


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
def sleep(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "slept"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
