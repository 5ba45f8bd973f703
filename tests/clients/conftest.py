"""Servers for real clients, which run in environments of their own: there is no torch beside them.

`make clients` runs these tests. PYTHON names the interpreter that has ossia.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("OSSIA_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
NODE = ROOT / ".venv-clients" / "node"  # where npm put the clients of Node


@dataclass
class Server:
    """url: with /v1 at its end, as clients of OpenAI take it."""

    url: str
    model: str

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


@dataclass
class Scripted(Server):
    """A server that answers with scripts."""

    process: subprocess.Popen[str]

    def __call__(self, *scripts: str) -> Scripted:
        """Have the next requests answered with these."""
        self._tell(scripts=scripts)
        return self

    @property
    def prompts(self) -> list[str]:
        """What the engine was asked to continue since then."""
        return self._tell(prompts=True)

    def _tell(self, **line: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        return json.loads(_line(self.process.stdout))


def _line(stdout: IO[str] | None) -> str:
    assert stdout is not None
    line = stdout.readline()
    assert line, "the server ended"
    return line


@contextmanager
def _running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process of the project's environment that serves, and what it says as it begins."""
    pipe = subprocess.PIPE
    command = [PYTHON, "-m", *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            yield process, json.loads(_line(process.stdout))
        finally:
            process.terminate()


@contextmanager
def scripted_server(*mcp_servers: str) -> Iterator[Scripted]:
    """A server, which runs the tools of MCP servers."""
    with _running("tests.clients.server", *mcp_servers) as (process, told):
        yield Scripted(told["url"], told["model"], process)


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Scripted]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def scripted(_scripted: Scripted) -> Scripted:
    """A server; after scripted(*scripts) its next requests are answered with them."""
    return _scripted()


@contextmanager
def stdlib_server(*options: str) -> Iterator[Server]:
    """`ossia serve` over the model inside the package, with these options."""
    arguments = ["serve", "--port", "0", "--json", "--kv-memory", "256MiB", *options]
    with _running("ossia", *arguments) as (_, told):
        yield Server(told["url"], told["model"])


@pytest.fixture(scope="session")
def stdlib() -> Iterator[Server]:
    """`ossia serve` over the model inside the package."""
    with stdlib_server() as server:
        yield server


@pytest.fixture
def node() -> Path:
    """The folder that has the clients of Node."""
    if shutil.which("node") is None or not (NODE / "node_modules").is_dir():
        pytest.skip("Node's clients are not installed: make clients says why")
    return NODE
