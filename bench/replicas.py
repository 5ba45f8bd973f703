"""`ossia serve --replicas` with the model in the package and Ray on this machine.

    python -m bench.replicas routing [--conversations N] [--turns N]    # by prefix and by turns
    python -m bench.replicas kills [--rounds N] [--clients N]           # kill -9, one at a time

routing: conversations that each begin with a long text of their own, turn by turn, four clients at
a time. What counts is how many of the prompts' tokens the replicas' prefix caches had. With the
larger memory each replica can keep all conversations; with the smaller, half of them.

kills: clients send whole and streamed requests to three APIs all the time. A replica is killed at a
random moment, and the clients go on until it is back. A request is lost if it failed and nothing
that was generated had reached its client; it is broken if something had. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.serve.http import Refused, post, stream
from bench.serve.process import Server, ossia
from ossia.measure.machine import describe

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
_WORDS = ("river", "stone", "market", "bridge", "winter", "letter", "garden", "engine", "harbour")
_CLIENTS = 4  # of routing
_RECOVERY_SECONDS = 300.0


def started(replicas: int, *arguments: str) -> Any:
    """A server of replicas on a Ray of its own, as `bench.serve.process.ossia`."""
    return ossia(["--replicas", str(replicas), *arguments])


def measure_routing(
    server: Server, conversations: int, turns: int, seed: int = 0
) -> dict[str, float]:
    """The hit rate of a server's prefix caches, and the seconds that it took."""
    before, began = hits(server), time.perf_counter()
    asyncio.run(_converse(server, conversations, turns, random.Random(seed)))
    seconds = time.perf_counter() - began
    known, asked = (now - then for now, then in zip(hits(server), before, strict=True))
    return {"prompt_tokens": asked, "hit_rate": known / asked, "seconds": seconds}


def hits(server: Server) -> tuple[float, float]:
    """Tokens that the replicas' prefix caches had, and tokens of prompts."""
    figures = server.figures()
    return total(figures, "ossia_prefix_hits_total"), total(figures, "ossia_prefix_queries_total")


def total(figures: dict[str, float], name: str) -> float:
    """The sum of a figure over replicas and other labels."""
    return sum(value for key, value in figures.items() if key.partition("{")[0] == name)


async def _converse(server: Server, count: int, turns: int, draw: random.Random) -> None:
    talks = [
        [{"role": "user", "content": " ".join(draw.choices(_WORDS, k=400))}] for _ in range(count)
    ]
    permits = asyncio.Semaphore(_CLIENTS)

    async def turn(talk: list[dict[str, str]], n: int) -> None:
        async with permits:
            body = {"model": server.model, "messages": talk, "max_tokens": 8, "temperature": 0}
            answer = await post(server.port, CHAT, body)
        said = answer["choices"][0]["message"]["content"] or "Yes."
        talk.append({"role": "assistant", "content": said})
        talk.append({"role": "user", "content": f"And question {n}?"})

    for n in range(turns):
        draw.shuffle(talks)  # whom a client asks for next is not known to the server
        await asyncio.gather(*(turn(talk, n) for talk in talks))


@dataclass
class Killed:
    """What became of requests while replicas were killed, and the seconds until each was back."""

    outcomes: Counter[str] = field(default_factory=Counter)
    during: Counter[str] = field(default_factory=Counter)  # of those that ran at a kill
    recovery: list[float] = field(default_factory=list)
    slowest: float = 0.0  # seconds of a request that was answered
    lost: list[str] = field(default_factory=list)  # why


def kill_replicas(server: Server, rounds: int, clients: int, seed: int = 0) -> Killed:
    """Kill a replica so many times while clients ask."""
    return asyncio.run(_kill(server, rounds, clients, random.Random(seed)))


async def _kill(server: Server, rounds: int, clients: int, draw: random.Random) -> Killed:
    killed, over = Killed(), asyncio.Event()
    running: dict[int, bool] = {}  # requests by number, and whether there was a kill

    async def client(n: int) -> None:
        own, count = random.Random(n), 0
        while not over.is_set():
            count += 1
            number = n * 1_000_000 + count
            running[number] = False
            began = time.perf_counter()
            outcome, why = await _ask(server, own)
            seconds = time.perf_counter() - began
            killed.outcomes[outcome] += 1
            killed.during[outcome] += running.pop(number)
            if outcome == "answered":
                killed.slowest = max(killed.slowest, seconds)
            if outcome == "lost":
                killed.lost.append(why)

    tasks = [asyncio.create_task(client(n)) for n in range(clients)]
    for _ in range(rounds):
        await asyncio.sleep(draw.uniform(1, 3))
        victims = processes(server.pid, "ray::ServeReplica")
        os.kill(draw.choice(victims), signal.SIGKILL)
        for number in running:
            running[number] = True
        killed.recovery.append(await asyncio.to_thread(_recovered, server, len(victims)))
    await asyncio.sleep(1)
    over.set()
    await asyncio.gather(*tasks)
    return killed


def _recovered(server: Server, count: int) -> float:
    """Seconds until the death is known and then all replicas are up again."""
    began = time.perf_counter()
    for wanted in (lambda up: up < count, lambda up: up == count):
        while not wanted(total(server.figures(), "ossia_replica_up")):
            if time.perf_counter() - began > _RECOVERY_SECONDS:
                raise RuntimeError("the replica did not come back")
            time.sleep(0.1)
    return time.perf_counter() - began


async def _ask(server: Server, draw: random.Random) -> tuple[str, str]:
    """One request, and what became of it: answered, broken or lost, with the reason."""
    path, streamed = draw.choice((CHAT, RESPONSES, MESSAGES)), draw.random() < 0.5
    body: dict[str, Any] = {"model": server.model, "temperature": 1.0, "stream": streamed}
    question = f"What is {draw.randrange(100)} + {draw.randrange(100)}?"
    if path == RESPONSES:
        body |= {"input": question, "max_output_tokens": 150}
    else:
        body |= {"messages": [{"role": "user", "content": question}], "max_tokens": 150}
    try:
        if not streamed:
            await post(server.port, path, body)
            return "answered", ""
        events = (await stream(server.port, path, body, keep=True)).events
    except (Refused, OSError) as error:
        return "lost", f"{path} {error}"
    failed = [event for event in events if "error" in (event.get("type"), *_keys(event))]
    if not failed:
        return "answered", ""
    begun = any("delta" in json.dumps(event) for event in events[:-1])
    return ("broken" if begun else "lost"), f"{path} {failed[0]}"


def _keys(event: dict[str, Any]) -> list[str]:
    return [] if "type" in event else list(event)


def processes(ancestor: int, title: str) -> list[int]:
    """The processes below one whose title begins so."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if line.startswith(title.encode()):
            found.append(int(folder.name))

    def below(pid: int) -> bool:
        while pid in parents:
            if (pid := parents[pid]) == ancestor:
                return True
        return False

    return [pid for pid in found if below(pid)]


def _routing(options: argparse.Namespace) -> dict[str, Any]:
    results = []
    for memory in options.memory.split(","):
        for routing in ("prefix", "turns"):
            with started(2, "--kv-memory", memory, "--routing", routing) as server:
                figures = measure_routing(server, options.conversations, options.turns)
            results.append({"routing": routing, "kv_memory": memory, **figures})
            print(json.dumps(results[-1]), file=sys.stderr)
    return {"results": results}


def _kills(options: argparse.Namespace) -> dict[str, Any]:
    with started(2, "--kv-memory", "64MiB") as server:
        killed = kill_replicas(server, options.rounds, options.clients)
        figures = server.figures()
    counted = {
        name: total(figures, f"ossia_{name}_total")
        for name in ("replica_deaths", "retried_requests", "broken_streams")
    }
    middle = statistics.median(killed.recovery)
    return vars(killed) | {"counted": counted, "median_recovery": middle}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.replicas")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    runs: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
    runs = {"routing": _routing, "kills": _kills}
    made = {name: commands.add_parser(name) for name in runs}
    made["routing"].add_argument("--conversations", type=int, default=24, metavar="N")
    made["routing"].add_argument("--turns", type=int, default=4, metavar="N")
    made["routing"].add_argument("--memory", default="64MiB,24MiB", metavar="SIZE,...")
    made["kills"].add_argument("--rounds", type=int, default=10, metavar="N")
    made["kills"].add_argument("--clients", type=int, default=8, metavar="N")
    for name, command in made.items():
        command.set_defaults(run=runs[name])
    options = parser.parse_args()
    record = options.run(options)
    print(json.dumps({"machine": asdict(describe()), **record}))
    return 1 if record.get("lost") else 0


if __name__ == "__main__":
    sys.exit(main())
