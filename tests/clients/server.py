"""A server over a scripted engine, as a process: for clients of other environments and languages.

    python -m tests.clients.server [MCP_SERVER ...]

Its model is offered the tools of MCP servers, which are named as for `ossia serve --mcp`. It says
on stdout where it listens, as `ossia serve --json` does, and then answers each line of its stdin,
which is a JSON object, with a line. {"scripts": [...]} is what the next requests are answered,
control tokens by name; {"prompts": true} are the prompts since then, as text. It ends with its
stdin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ossia import text
from ossia.api import LLM
from ossia.engine import Driver
from ossia.serve.app import application
from ossia.serve.hosted import Hosted
from ossia.serve.options import ServeOptions
from ossia.serve.server import listen, serve, url
from ossia.serve.service import Service
from ossia.tools.mcp import Address, McpServers
from tests.scripted import ScriptedEngine, small_config, write_byte_tokenizer

CONTEXT = 2**18  # a token is a byte, and what agents send is long


class Script:
    """What the engine answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = text.load_tokenizer(folder)
        self._scripts: deque[list[int]] = deque()
        self.engine = ScriptedEngine(iter(self._scripts.popleft, None), small_config(CONTEXT))
        chat_format = text.load_format(folder, self._tokenizer)
        self.llm = LLM.from_parts(Driver(self.engine, 1024), self._tokenizer, chat_format)
        self._since = 0

    def answer(self, line: dict[str, Any]) -> Any:
        """Do what a line of stdin says."""
        if "scripts" in line:
            self._scripts.clear()
            self._scripts += [self._tokenizer.encode_control(script) for script in line["scripts"]]
            self._since = len(self.engine.requests)
            return None
        asked = self.engine.requests[self._since :]
        return [self._tokenizer.decode(request.prompt) for request in asked]


def main() -> None:
    """Serve until stdin ends."""
    with tempfile.TemporaryDirectory() as folder:
        script = Script(write_byte_tokenizer(Path(folder)))
    addresses = [Address.of(text) for text in sys.argv[1:]]
    with McpServers(addresses) if addresses else nullcontext() as mcp:
        _serve(script, Hosted(mcp.toolsets if mcp else ()))


def _serve(script: Script, hosted: Hosted) -> None:
    server = listen(ServeOptions(port=0))
    service = Service(script.llm, "scripted", hosted=hosted)
    print(json.dumps({"url": f"{url(server)}/v1", "model": service.name}), flush=True)

    def follow() -> None:
        for line in sys.stdin:
            print(json.dumps(script.answer(json.loads(line))), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    serve(application(service), server, 1, service.tasks)
    script.llm.close()


if __name__ == "__main__":
    main()
