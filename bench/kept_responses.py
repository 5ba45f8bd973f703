"""Kills 50 times, at random moments while responses are kept: none that was acknowledged is lost.

    python -m bench.kept_responses server [--rounds N]    # `ossia serve`, through HTTP
    python -m bench.kept_responses store [--rounds N]     # a process that writes the file only

Each round kills the process by SIGKILL and opens the same file again. Then every response that was
acknowledged in any round is read. Prints one JSON line.

To the server, clients send requests of three kinds at once: whole, streamed, and in the background.
A response is acknowledged when its answer, or its stream's last event, has arrived; one in the
background also when its first event has. What is read must be what arrived. A response in the
background that a kill ended must have failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.serve.http import Refused, events, post
from bench.serve.process import Server, get, ossia
from ossia.serve.responses.store import ResponseStore
from tests.serve.test_store import killed_writer

_PATH = "/v1/responses"
_ENDED = ("completed", "incomplete", "failed")
_MOST_SECONDS = 2.0  # from the first request to the kill


@dataclass
class Acknowledged:
    """What clients received, by the responses' ids, and how many of each kind of request. cut: the
    requests that ran when the server was killed.
    """

    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def add(self, kind: str, response: dict[str, Any]) -> None:
        if response["id"] not in self.responses:
            self.kinds[kind] += 1
        self.responses[response["id"]] = response

    def faults(self, server: Server) -> list[str]:
        """The responses that a server does not have as they were received."""
        return [f"{id}: {why}" for id in self.responses if (why := self._fault(server, id))]

    def _fault(self, server: Server, id: str) -> str | None:
        try:
            found = json.loads(get(server.port, f"{_PATH}/{id}"))
        except urllib.error.HTTPError as error:
            return f"status {error.code}"
        received = self.responses[id]
        if received["status"] not in _ENDED:
            return None if found["status"] in _ENDED else f"is {found['status']}"
        return None if found == received else f"{found} is not {received}"


def kill_servers(rounds: int, clients: int = 8, seed: int = 0) -> dict[str, Any]:
    """Kill `ossia serve` in each round, and start it again over the same file. Returns the figures.
    Raises RuntimeError for a response that was lost or changed.
    """
    draw, acknowledged, starts = random.Random(seed), Acknowledged(), []
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--responses", str(Path(folder) / "responses.sqlite")]
        for n in range(rounds + 1):
            began = time.perf_counter()
            with ossia(arguments) as server:
                starts.append(time.perf_counter() - began)
                if faults := acknowledged.faults(server):
                    raise RuntimeError(f"after kill {n}: {'; '.join(faults[:9])}")
                if n < rounds:
                    asyncio.run(_killed(server, clients, draw, acknowledged))
    return {
        "kills": rounds,
        "acknowledged": acknowledged.kinds,
        "cut": acknowledged.cut,
        "lost": 0,
        "seconds to start": round(statistics.median(starts), 2),
    }


async def _killed(
    server: Server, clients: int, draw: random.Random, acknowledged: Acknowledged
) -> None:
    """Let clients ask, and kill the server in the midst of it."""
    draws = [random.Random(draw.random()) for _ in range(clients)]
    tasks = [asyncio.create_task(_client(server, each, acknowledged)) for each in draws]
    await asyncio.sleep(draw.random() * _MOST_SECONDS)
    while not (acknowledged.kinds or all(task.done() for task in tasks)):
        await asyncio.sleep(0.01)  # on a slow machine: there is nothing yet that could be lost
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.gather(*tasks)


async def _client(server: Server, draw: random.Random, acknowledged: Acknowledged) -> None:
    """Ask until the server is gone."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            acknowledged.cut += 1
            await _ask(server, draw, acknowledged)
            acknowledged.cut -= 1


async def _ask(server: Server, draw: random.Random, acknowledged: Acknowledged) -> None:
    """One request of any kind, half of which go on from a response that was kept."""
    body: dict[str, Any] = {"model": server.model, "input": "What is 12 + 35?"}
    body["max_output_tokens"] = draw.choice((16, 32, 64))
    ended = [id for id, r in acknowledged.responses.items() if r["status"] in _ENDED]
    if ended and draw.random() < 0.5:
        body["previous_response_id"] = draw.choice(ended[-20:])
    kind = draw.choice(("whole", "streamed", "background"))
    if kind == "whole":
        acknowledged.add(kind, await post(server.port, _PATH, body))
        return
    body |= {"stream": True, "background": kind == "background"}
    async with events(server.port, _PATH, body) as told:
        async for data in told:
            event = json.loads(data)
            response = event.get("response")
            if response and (body["background"] or response["status"] in _ENDED):
                acknowledged.add(kind, response)


def kill_writers(rounds: int, seed: int = 0) -> dict[str, Any]:
    """Kill a process that keeps responses in each round. Returns and raises as `kill_servers`."""
    draw, named = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "responses.sqlite"
        for n in range(rounds):
            named += killed_writer(file, str(n), draw.random() / 2)
            store = ResponseStore(file)
            lost = [id for id in named[-4500:] if store.get(id) is None]  # two rows each, of 10,000
            store.close()
            if lost:
                raise RuntimeError(f"lost after kill {n + 1}: {', '.join(lost[:9])}")
    return {"kills": rounds, "responses": len(named), "lost": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("server", "store"))
    parser.add_argument("--rounds", type=int, default=50, metavar="N")
    options = parser.parse_args()
    kill = kill_servers if options.what == "server" else kill_writers
    try:
        print(json.dumps(kill(options.rounds)))
    except (RuntimeError, Refused) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
