"""Many clients at once for minutes, a third of whom hang up midway: is there an error, a page that
nobody gives back, memory that grows?
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.serve.http import Refused, Timed, stream
from bench.serve.process import Server, ossia

_ASKED = (
    "What is 12 + 35?",
    "How many r in strawberry?",
    "Sort 9, 3, 7, 1.",
    "What does os.path.join do?",
    "Write hello in uppercase.",
    "Hello!",
    "Which is bigger, 9.11 or 9.9?",
)
_HANG_UP = 1 / 3  # of the requests
_GROWTH = 32 << 20  # bytes by which memory may differ between the second half and its start
_IDLE_SECONDS = 30


@dataclass
class Tally:
    """What became of the requests, and their times in seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, timed: Timed) -> None:
        self.outcomes["hung up" if timed.hung_up else "answered"] += 1
        self.first += timed.arrivals[:1]
        self.between += [b - a for a, b in zip(timed.arrivals, timed.arrivals[1:], strict=False)]


@dataclass(frozen=True)
class Soaked:
    """memory: bytes, a reading every few seconds. left: generations and pages still in use when
    all clients are gone.
    """

    tally: Tally
    memory: list[int]
    left: dict[str, float]

    @property
    def growth(self) -> int:
        """By how many bytes memory grew from the second quarter of the time to the last."""
        quarter = max(1, len(self.memory) // 4)
        begin, end = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return round(statistics.median(end) - statistics.median(begin or end))

    def faults(self) -> Iterator[str]:
        """What should not be."""
        for outcome, count in self.tally.outcomes.items():
            if outcome not in ("answered", "hung up"):
                yield f"{count} requests: {outcome}"
        for name, count in self.left.items():
            if count:
                yield f"{name} is {count:g} when all clients are gone"
        if self.growth > _GROWTH:
            yield f"memory grew by {self.growth / 2**20:.0f} MiB"


def soak(clients: int, seconds: float, arguments: list[str], seed: int = 0) -> Soaked:
    """Let `clients` ask a server, started with these arguments, for `seconds`."""
    with ossia(arguments) as server:
        return asyncio.run(_soak(server, clients, seconds, seed))


async def _soak(server: Server, clients: int, seconds: float, seed: int) -> Soaked:
    tally, memory = Tally(), [server.memory()]
    end = time.monotonic() + seconds
    tasks = [
        asyncio.create_task(_client(server, random.Random(f"{seed} {n}"), end, tally))
        for n in range(clients)
    ]
    while time.monotonic() < end:
        await asyncio.sleep(min(5, max(0, end - time.monotonic())))
        memory.append(server.memory())
    await asyncio.gather(*tasks)
    return Soaked(tally, memory, await _left(server))


async def _client(server: Server, draw: random.Random, end: float, tally: Tally) -> None:
    """Ask once, and again until the end."""
    while True:
        path, body = _request(server.model, draw)
        most = draw.randint(1, 20) if draw.random() < _HANG_UP else None
        try:
            tally.add(await stream(server.port, path, body, most=most))
        except Refused as error:
            tally.outcomes[str(error)] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.outcomes[f"{type(error).__name__}: {error}"] += 1
        if time.monotonic() >= end:
            return
        await asyncio.sleep(draw.random() * 0.1)


def _request(model: str, draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A request of any length to one of the endpoints."""
    body: dict[str, Any] = {"model": model, "stream": True, "temperature": draw.choice((0, 0.7, 1))}
    most = draw.choice((8, 32, 100, 300))
    kind = draw.random()
    if kind < 0.2:
        prompt = "def f(x):\n    return x\n" * draw.randint(1, 40)
        return "/v1/completions", body | {"prompt": prompt, "max_tokens": most}
    turns = [draw.choice(_ASKED) for _ in range(draw.choice((1, 1, 2, 4)))]
    messages = []
    for turn in turns[:-1]:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Well."}]
    messages.append({"role": "user", "content": turns[-1]})
    if kind < 0.7:
        return "/v1/chat/completions", body | {"messages": messages, "max_tokens": most}
    return "/v1/responses", body | {"input": messages, "max_output_tokens": max(16, most)}


async def _left(server: Server) -> dict[str, float]:
    """What is in use once the server has had time to notice that nobody listens."""
    used: dict[str, float] = {}
    for _ in range(_IDLE_SECONDS):
        used = {
            name: value
            for name, value in server.figures().items()
            if name in ("ossia_unfinished", "ossia_running", "ossia_waiting")
            or (name.startswith("ossia_kv_pages{") and 'state="used"' in name)
        }
        if not any(used.values()):
            break
        await asyncio.sleep(1)
    return used
