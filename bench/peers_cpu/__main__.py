"""ossia beside llama.cpp and transformers on the CPU: one command, one table.

    python -m bench.peers_cpu [MODEL ...] [--help]

Every program gets the same shapes and random weights and is timed by the same code. Programs
alternate, each turn is a separate process, and read bandwidth is measured in each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.peers_cpu.files import make_checkpoint, make_gguf
from bench.peers_cpu.turn import Job
from bench.setting import available_threads, files_folder
from ossia.checkpoint import read_config
from ossia.errors import OssiaError
from ossia.measure.machine import describe
from ossia.measure.speed import Spread

SLOW_SECONDS = 60.0  # a prompt that takes longer is measured once
MEMORY_PROMPT = 4096  # a prompt of ours, to measure its memory


# Program and precision of dense weights, by model; which of ours a peer is compared with.
PROGRAMS = {
    "gpt-oss-20b": (
        ("ossia", "bfloat16"),
        ("ossia", "int8"),
        ("llama.cpp", "Q8_0"),
        ("transformers", "bfloat16"),
    ),
    "qwen3-0.6b": (
        ("ossia", "bfloat16"),
        ("ossia", "int8"),
        ("llama.cpp", "bfloat16"),
        ("llama.cpp", "Q8_0"),
        ("transformers", "bfloat16"),
    ),
    "gpt2": (
        ("ossia", "float32"),
        ("ossia", "bfloat16"),
        ("transformers", "float32"),
        ("transformers", "bfloat16"),
    ),
}
_ALIKE = {"Q8_0": "int8"}  # both round dense weights to 8 bits
BATCHES = {"qwen3-0.6b": (1, 8)}  # sequences, of ours; peers decode one


@dataclass
class Entry:
    """One row of the table: a program in one precision, and its measurements."""

    program: str
    precision: str
    job: Job | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None  # why it was not measured

    def decoding(self, batch: int = 1) -> Spread | None:
        """Tokens per second of all sequences."""
        return self._spread(
            lambda run: [
                found["tokens_per_second"]["median"]
                for found in run["speed"]["decoding"]
                if found["batch"] == batch
            ]
        )

    def share(self) -> Spread | None:
        """The share of the limit by bandwidth, when decoding one sequence."""
        return self._spread(lambda run: [run["speed"]["decoding"][0]["share"]["median"]])

    def prefill(self, tokens: int) -> Spread | None:
        """Tokens per second of a prompt of this length."""
        return self._spread(
            lambda run: [
                found["tokens_per_second"]["median"]
                for found in run["speed"]["prefill"]
                if found["tokens"] == tokens
            ]
        )

    def first_token_seconds(self) -> Spread | None:
        return self._spread(lambda run: [run["first_token_seconds"]])

    def read_bytes_per_second(self) -> Spread | None:
        return self._spread(lambda run: [run["speed"]["read_bytes_per_second"]["median"]])

    def anonymous_bytes(self) -> int:
        return max((run["anonymous_bytes"] for run in self.runs), default=0)

    def _spread(self, values: Callable[[dict[str, Any]], list[float]]) -> Spread | None:
        found = [value for run in self.runs for value in values(run)]
        return Spread.of(found) if found else None


def main() -> int:
    options = _options()
    console = Console(stderr=True, highlight=False)
    record: dict[str, Any] = {"machine": asdict(describe()), "turns": options.turns, "models": {}}
    record["machine"]["threads"] = options.threads
    with files_folder(options.folder, "ossia-peers-") as folder:
        for name in options.models:
            entries = _prepare(name, folder, options, console)
            _measure(name, entries, options, console)
            record["models"][name] = [_entry_record(entry) for entry in entries]
            if not options.json:
                _print(name, entries, options)
            if options.folder is None:
                _remove(folder)
    if options.json:
        print(json.dumps(record))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers_cpu",
        description="ossia beside llama.cpp and transformers on the CPU, on the same random "
        "weights, alternately in one run.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(PROGRAMS))
    parser.add_argument("--prompts", default="512,2048", metavar="N,...", help="tokens to read")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to make")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, default=available_threads(), metavar="N")
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the files here, and use those it holds (default: a temporary folder)",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="MODEL=FOLDER",
        help="measure this checkpoint in the place of random weights",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    options.models = options.models or list(PROGRAMS)
    try:
        options.prompts = [int(part) for part in options.prompts.split(",")]
    except ValueError:
        parser.error(f"--prompts {options.prompts}: must be numbers with commas between them")
    if min(*options.prompts, options.tokens, options.turns, options.threads) < 1:
        parser.error("--prompts, --tokens, --turns and --threads must be at least 1")
    for name in options.models:
        if name not in PROGRAMS:
            parser.error(f"unknown model {name}; there are {', '.join(PROGRAMS)}")
    given = [part.partition("=") for part in options.checkpoint]
    options.checkpoint = {name: Path(path).resolve() for name, _, path in given}
    if unknown := [name for name in options.checkpoint if name not in PROGRAMS]:
        parser.error(f"--checkpoint {unknown[0]}: must be MODEL=FOLDER, of {', '.join(PROGRAMS)}")
    return options


def _remove(folder: Path) -> None:
    """Empty a temporary folder, because the next model needs the space."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prepare(name: str, folder: Path, options: argparse.Namespace, console: Console) -> list[Entry]:
    """A model's files, and the measurements to make."""
    entries = [Entry(program, precision) for program, precision in PROGRAMS[name]]
    with console.status(f"{name}: making files"):
        source = options.checkpoint.get(name) or make_checkpoint(name, folder)
        context = read_config(source).context_length
        prompts = [length for length in options.prompts if length < context]
        for entry in entries:
            ours = entry.program == "ossia"
            lengths = [*prompts, MEMORY_PROMPT] if ours and context > MEMORY_PROMPT else prompts
            file = None
            if entry.program == "llama.cpp":
                try:
                    file = make_gguf(
                        source, folder / f"{name}-{entry.precision.lower()}.gguf", entry.precision
                    )
                except OssiaError as error:
                    entry.reason = str(error)
                    continue
            entry.job = Job(
                program=entry.program,
                folder=str(source),
                file=None if file is None else str(file),
                precision=entry.precision,
                prompts=list(dict.fromkeys(lengths)),
                tokens=options.tokens,
                batches=BATCHES.get(name, (1,)) if ours else (1,),
                threads=options.threads,
            )
    return entries


def _measure(
    name: str, entries: Sequence[Entry], options: argparse.Namespace, console: Console
) -> None:
    """Run all entries `turns` times, one after another.

    A reason ends an entry, and a prompt that took long is read once.
    """
    for turn in range(options.turns):
        for entry in entries:
            if entry.job is None:
                continue
            what = f"{name}: {entry.program} {entry.precision}, turn {turn + 1}/{options.turns}"
            with console.status(what):
                answer = _run(entry.job, options.threads)
            if run := answer.get("run"):
                entry.runs.append(run)
                again = [
                    found["tokens"]
                    for found in run["speed"]["prefill"]
                    if found["seconds"]["median"] <= SLOW_SECONDS
                    and found["tokens"] in options.prompts
                ]
                entry.job = replace(entry.job, prompts=again)
            else:
                entry.reason, entry.job = answer["reason"], None
            console.print(f"{what}: {_brief(entry)}", soft_wrap=True)


def _run(job: Job, threads: int) -> dict[str, Any]:
    """One turn in a separate process, so that its memory is free for the next."""
    process = subprocess.run(
        [sys.executable, "-m", "bench.peers_cpu.turn", json.dumps(asdict(job))],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode < 0:
        return {"reason": f"died of {signal.Signals(-process.returncode).name}"}
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"reason": lines[-1]}
    return json.loads(process.stdout.splitlines()[-1])


def _brief(entry: Entry) -> str:
    if entry.reason:
        return entry.reason
    run = entry.runs[-1]["speed"]
    parts = [f"{run['decoding'][0]['tokens_per_second']['median']:.1f} tokens/s"]
    parts += [
        f"prompt of {found['tokens']} at {found['tokens_per_second']['median']:.0f}"
        for found in run["prefill"]
    ]
    return ", ".join(parts)


def _rival(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """Our run that a peer is compared with: that of its precision, else the first."""
    precision = _ALIKE.get(entry.precision, entry.precision)
    ours = [other for other in entries if other.program == "ossia" and other.runs]
    alike = [other for other in ours if other.precision == precision]
    return next(iter(alike or ours), None)


def _ratio(ours: Spread | None, theirs: Spread | None) -> float | None:
    return ours.median / theirs.median if ours and theirs else None


def _entry_record(entry: Entry) -> dict[str, Any]:
    return {
        "program": entry.program,
        "precision": entry.precision,
        "reason": entry.reason,
        "runs": entry.runs,
    }


def _print(name: str, entries: Sequence[Entry], options: argparse.Namespace) -> None:
    reads = [spread.median for entry in entries if (spread := entry.read_bytes_per_second())]
    title = f"{name}, {options.threads} threads, medians of {options.turns} turns"
    if reads:
        title += f", memory read at {min(reads) / 1e9:.1f} to {max(reads) / 1e9:.1f} GB/s"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    columns = ["tokens/s", "of limit", "ossia / it"]
    for length in options.prompts:
        columns += [f"prompt {length:,}", "ossia / it"]
    for column in (*columns, "first token, s", "memory, GB"):
        table.add_column(column, justify="right")
    for entry in entries:
        rival = None if entry.program == "ossia" else _rival(entry, entries)
        cells = [
            _cell(entry.decoding(), 1),
            _cell(entry.share(), 2),
            _times(_ratio(rival.decoding(), entry.decoding()) if rival else None),
        ]
        for length in options.prompts:
            read = entry.prefill(length)
            cells += [
                _cell(read, 0),
                _times(_ratio(rival.prefill(length), read) if rival else None),
            ]
        cells += [
            _cell(entry.first_token_seconds(), 2),
            f"{entry.anonymous_bytes() / 1e9:.2f}" if entry.runs else "-",
        ]
        table.add_row(f"{entry.program} {entry.precision}", *cells)
        for batch in BATCHES.get(name, ())[1:]:
            if together := entry.decoding(batch):
                times = _times(_ratio(together, entry.decoding()))
                table.add_row(f"  {batch} sequences, {times} one", _cell(together, 1))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
    for entry in entries:
        if entry.reason:
            print(f"{entry.program} {entry.precision}: {entry.reason}")


def _cell(spread: Spread | None, digits: int) -> str:
    return "-" if spread is None else f"{spread.median:,.{digits}f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


if __name__ == "__main__":
    sys.exit(main())
