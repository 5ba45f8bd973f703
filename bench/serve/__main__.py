"""`ossia serve` under load.

python -m bench.serve speed --llama-server path/to/llama-server    # beside llama.cpp's server
python -m bench.serve turns                                        # an agent's growing prompt
python -m bench.serve soak --clients 64 --minutes 10               # the model in the package
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.serve import files
from bench.serve.process import Server, ossia, peer
from bench.serve.soak import soak
from bench.serve.speed import Load, Reading, measure, turns
from bench.setting import available_threads, files_folder
from ossia.families import PRESETS
from ossia.measure.machine import describe


def main() -> int:
    options = _options()
    record: dict[str, Any] = {"machine": asdict(describe()), "threads": options.threads}
    try:
        record |= options.run(options)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(record))
    return 1 if record.get("faults") else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description="`ossia serve` under load."
    )
    parser.add_argument("--threads", type=int, default=available_threads(), metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object too")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("speed", _speed, "output tokens per second by the number of clients"),
        ("turns", _turns, "seconds to the first token of an agent's turns"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=run)
        command.add_argument("--model", default="qwen3-0.6b", choices=list(PRESETS))
        command.add_argument("--folder", type=Path, help="keep the files here, or use those in it")
    speed = commands.choices["speed"]
    speed.add_argument("--clients", default="1,4,8,16", metavar="N,...")
    speed.add_argument("--runs", type=int, default=3, metavar="N")
    speed.add_argument("--tokens", type=int, default=64, metavar="N", help="of each answer")
    speed.add_argument("--llama-server", type=Path, metavar="FILE", help="llama.cpp's server")
    command = commands.choices["turns"]
    command.add_argument("--history", type=int, default=4000, metavar="N", help="tokens")
    command.add_argument("--new", type=int, default=200, metavar="N", help="tokens of each turn")
    command.add_argument("--count", type=int, default=10, metavar="N")
    command = commands.add_parser("soak", help="many clients, a third of whom hang up")
    command.set_defaults(run=_soak)
    command.add_argument("--clients", type=int, default=64, metavar="N")
    command.add_argument("--minutes", type=float, default=10, metavar="X")
    command.add_argument("model", nargs="*", help="arguments of ossia serve")
    return parser.parse_args()


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    """The server, its engine alone and the peer, by turns."""
    loads = [Load(int(n), tokens=options.tokens) for n in options.clients.split(",")]
    size = PRESETS[options.model].vocab_size - 1  # not the end of a text
    found: dict[str, dict[int, list[Reading]]] = {}
    alone: dict[int, list[float]] = {load.clients: [] for load in loads}
    with files_folder(options.folder, "ossia-serve-") as folder:
        source = files.make_served(options.model, folder)
        command = None
        if options.llama_server is not None:
            gguf = files.make_gguf(source, folder / f"{options.model}-served.gguf")
            most = max(load.clients for load in loads)
            command = _llama_server(options, gguf, most)
        for run in range(options.runs):
            with ossia([str(source)], options.threads) as server:
                _add(found, "ossia serve", server, loads, size, run)
            for clients, rate in _alone(source, loads, run, options.threads).items():
                alone[clients].append(rate)
            if command is not None:
                with peer(command, options.model) as server:
                    _add(found, "llama-server", server, loads, size, run)
    _print_speed(found, alone)
    readings = {
        name: {clients: [asdict(reading) for reading in runs] for clients, runs in rows.items()}
        for name, rows in found.items()
    }
    return {"speed": readings, "engine": alone}


def _llama_server(options: argparse.Namespace, gguf: Path, clients: int) -> list[str]:
    """Its command: as many slots as clients, each with room for a prompt and an answer."""
    context = (Load.prompt + options.tokens + 64) * clients
    return [
        *(str(options.llama_server), "--model", str(gguf)),
        *("--parallel", str(clients), "--ctx-size", str(context)),
        *("--threads", str(options.threads), "--threads-batch", str(options.threads)),
    ]


def _add(
    found: dict[str, dict[int, list[Reading]]],
    name: str,
    server: Server,
    loads: list[Load],
    size: int,
    run: int,
) -> None:
    measure(server, Load(1, requests=1, tokens=8), size, -1 - run)  # warms it up
    for load in loads:
        reading = measure(server, load, size, run)
        found.setdefault(name, {}).setdefault(load.clients, []).append(reading)
        print(f"{name}, {load.clients} clients: {reading.tokens_per_second:.1f}", file=sys.stderr)


def _alone(source: Path, loads: list[Load], run: int, threads: int) -> dict[int, float]:
    asked = json.dumps({"loads": [asdict(load) for load in loads], "seed": run})
    process = subprocess.run(
        [sys.executable, "-m", "bench.serve.engine", str(source), asked],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError((process.stderr.strip().splitlines() or ["the engine failed"])[-1])
    return {int(n): rate for n, rate in json.loads(process.stdout).items()}


def _print_speed(found: dict[str, dict[int, list[Reading]]], alone: dict[int, list[float]]) -> None:
    print("output tokens per second, medians; first token in seconds")
    for clients, engine in alone.items():
        rates = {
            name: statistics.median(reading.tokens_per_second for reading in rows[clients])
            for name, rows in found.items()
        }
        first = {
            name: statistics.median(reading.first for reading in rows[clients])
            for name, rows in found.items()
        }
        ours, base = rates["ossia serve"], statistics.median(engine)
        line = f"{clients:>3} clients: engine {base:.1f}"
        for name, rate in rates.items():
            line += f", {name} {rate:.1f} (first token {first[name]:.2f})"
        line += f"; the server takes {base / ours - 1:.1%} more time than its engine"
        after = [r.after for r in found["ossia serve"][clients] if r.after is not None]
        line += f", its client has a first token after {statistics.median(after) * 1000:.0f} ms"
        if (theirs := rates.get("llama-server")) is not None:
            line += f", ossia / llama-server {ours / theirs:.2f}"
        print(line)


def _turns(options: argparse.Namespace) -> dict[str, Any]:
    size = PRESETS[options.model].vocab_size - 1
    with files_folder(options.folder, "ossia-serve-") as folder:
        source = files.make_served(options.model, folder)
        with ossia([str(source)], options.threads) as server:
            alone, *each = turns(
                server, size, history=options.history, new=options.new, count=options.count
            )
    print(
        f"first token of a prompt of {options.new}: {alone:.2f} s; of {options.new} more after "
        f"{options.history} and all turns before: {statistics.median(each):.2f} s in the median, "
        f"{each[-1]:.2f} s in the last ({statistics.median(each) / alone:.2f} times)"
    )
    return {"alone": alone, "turns": each}


def _soak(options: argparse.Namespace) -> dict[str, Any]:
    soaked = soak(options.clients, options.minutes * 60, options.model)
    tally, faults = soaked.tally, list(soaked.faults())
    print(", ".join(f"{count:,} {outcome}" for outcome, count in tally.outcomes.most_common(5)))
    for name, seconds in (("first token", tally.first), ("between two events", tally.between)):
        cuts = statistics.quantiles(seconds, n=100)
        print(
            f"{name}: " + ", ".join(f"{cuts[p - 1] * 1000:.1f} ms at {p} %" for p in (50, 90, 99))
        )
    memory = [size / 2**20 for size in soaked.memory]
    print(f"memory: {memory[0]:.0f} MiB at the start, {memory[-1]:.0f} MiB at the end")
    print("\n".join(faults) or "no fault")
    return {"outcomes": tally.outcomes, "memory": soaked.memory, "faults": faults}


if __name__ == "__main__":
    sys.exit(main())
