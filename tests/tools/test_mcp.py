"""Tools of a real MCP server, over stdio and over HTTP: what calls give, and what failures give."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.tools.toolset import Result
from tests.scripted import eventually

pytest.importorskip("mcp")

from ossia.tools.mcp import Address, McpServers, McpTools

COMMAND = (sys.executable, "-P", str(Path(__file__).parent / "mcp_server.py"))


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Servers start when the machine has time for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ossia.tools.mcp._CONNECT_SECONDS", 300.0)
        yield


@pytest.fixture(scope="module")
def tools() -> Iterator[McpTools]:
    """Those of one server for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSSIA_API_KEYS", "a secret")
        with McpServers([Address(None, None, COMMAND)]) as servers:
            yield servers.toolsets[0]
    assert eventually(lambda: not _children())  # it ended with the block


def _children() -> list[str]:
    """The servers that this process has started."""
    command = ["ps", "-ww", "-o", "args=", "--ppid", str(os.getpid())]  # whole lines
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "mcp_server.py" in line]


def call(tools: McpTools, name: str, /, **arguments: Any) -> Result:
    async def result() -> Result:
        return await tools.begin()(name, json.dumps(arguments))

    return asyncio.run(result())


def test_tools_have_the_names_and_the_schemas_of_the_server(tools):
    assert tools.label == "little"
    functions = {function.name: function for function in tools.functions}
    assert set(functions) == {"add", "fail", "picture", "environment", "die", "sleep"}
    assert functions["add"].description == "Adds two numbers."
    assert set(functions["add"].parameters["properties"]) == {"a", "b"}


def test_a_call_gives_text_and_a_failure_is_a_result(tools):
    assert call(tools, "add", a=1, b=2) == Result("3")
    assert call(tools, "picture") == Result("look:\n[image: image/png]")
    for failed in (call(tools, "fail"), call(tools, "add", a="x"), call(tools, "unknown")):
        assert failed.is_error
    assert asyncio.run(_raw(tools, "add", "[1]")).is_error
    assert asyncio.run(_raw(tools, "add", "{")).is_error


async def _raw(tools: McpTools, name: str, arguments: str) -> Result:
    return await tools.begin()(name, arguments)


def test_a_server_gets_none_of_the_keys(tools):
    assert call(tools, "environment", name="OSSIA_API_KEYS") == Result("unset")


def test_a_server_that_dies_is_an_error_and_is_started_again(tools):
    assert len(_children()) == 1
    died = call(tools, "die")
    assert died.is_error
    assert call(tools, "add", a=2, b=2) == Result("4")


def test_a_call_is_given_up_after_a_while(tools, monkeypatch):
    assert call(tools, "sleep", seconds=0) == Result("slept")
    monkeypatch.setattr("ossia.tools.mcp._CALL_SECONDS", 0.1)
    assert call(tools, "sleep", seconds=2).is_error


def test_a_server_over_http_may_go_and_come_back():
    with _port() as port:
        _goes_and_comes_back(port)


@contextmanager
def _port() -> Iterator[int]:
    """A port that a server may take and the system gives to nobody else: a socket is bound to it
    that does not listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def _goes_and_comes_back(port: int) -> None:
    address = Address.of(f"far=http://127.0.0.1:{port}/mcp")
    with pytest.raises(OssiaError, match="cannot be used"), McpServers([address]):
        pass
    server = _listen(port)
    try:
        with McpServers([address]) as servers:
            tools = servers.toolsets[0]
            assert tools.label == "far"
            assert call(tools, "add", a=1, b=2) == Result("3")
            _end(server)
            assert call(tools, "add", a=1, b=2).is_error
            server = _listen(port)
            assert eventually(lambda: call(tools, "add", a=1, b=2) == Result("3"))
    finally:
        _end(server)


def _listen(port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    assert eventually(answers)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()


def test_two_servers_have_two_labels():
    connection: Any = SimpleNamespace(name="my server!", tools=[])
    loop: Any = None
    assert McpTools(connection, loop, set()).label == "my_server"
    assert McpTools(connection, loop, {"my_server"}).label == "my_server_2"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://h:1/mcp?a=b", Address(None, "http://h:1/mcp?a=b")),
        ("docs=https://h/mcp", Address("docs", "https://h/mcp")),
        ("python -m 'a b'", Address(None, None, ("python", "-m", "a b"))),
        ("time=uvx time --tz=x", Address("time", None, ("uvx", "time", "--tz=x"))),
    ],
)
def test_an_address_is_a_url_or_a_command(text, address):
    assert Address.of(text) == address


@pytest.mark.parametrize("text", ["", "  ", "a 'b", "label="])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(OssiaError, match="--mcp"):
        print(Address.of(text))


@pytest.mark.parametrize("text", ["/missing/command", sys.executable + " -c 1"])
def test_a_command_that_is_no_server_is_refused_in_a_line(text):
    with pytest.raises(OssiaError, match="cannot be used") as error, McpServers([Address.of(text)]):
        pass
    assert "\n" not in str(error.value)
