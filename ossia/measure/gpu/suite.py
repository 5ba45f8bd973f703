"""All parts of a suite, one process after another, within a time that is given."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, Any

import torch

from ossia.errors import OssiaError, brief
from ossia.measure.gpu import limits
from ossia.measure.gpu.cases import Case, Side, Suite
from ossia.measure.gpu.parts import SKIPPED, Kind, Part, Told, parts
from ossia.system import gpu

_LEAST_SECONDS = 10.0  # in which a part can measure anything
_ENDING = 2.0  # seconds that a part is given to say that its time is up

# The command that runs a part, from the part and the seconds that it has.
Command = Callable[[Part, float], list[str]]


@dataclass
class Found:
    """What a run found. limits: as `limits.measure` returns them. told: by row and side."""

    limits: dict[str, Any]
    told: dict[tuple[Case, Side], Told] = field(default_factory=dict)
    seconds: float = 0.0


def check(name: str) -> None:
    """Raise OssiaError, in one line, unless that is a card that the kernels run on."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("cpu")
    if device.type != "cuda":
        raise OssiaError(f"--device {name}: a card is named cuda or cuda:1")
    hint = "`ossia bench gpu --rehearse` runs every row's code on the CPU, with tiny shapes"
    if not gpu.available():
        raise OssiaError(f"{gpu.problem() or 'there is no NVIDIA GPU to measure'}; {hint}")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise OssiaError(f"--device {name}: this process has cuda:0 to cuda:{count - 1}")
    try:
        from ossia.ops import triton
    except ImportError as error:
        raise OssiaError(
            f"the package triton cannot be imported ({error}): pip install 'ossia[gpu]'"
        ) from error
    if (lacking := triton.unusable(device)) is not None:
        raise OssiaError(f"{lacking}; {hint}")


def command(suite: str, device: str, folder: Path) -> Command:
    """Runs a part in a Python of its own."""

    def build(part: Part, left: float) -> list[str]:
        described = json.dumps(asdict(part))
        program = [sys.executable, "-P", "-m", "ossia.measure.gpu"]
        return [*program, described, suite, device, f"{left:.1f}", str(folder)]

    return build


def run(
    suite: Suite, seconds: float, command: Command, show: Callable[[str], None] = lambda _: None
) -> Found:
    """Measure all parts within `seconds`; the rows of those that did not fit say so. `show` is told
    what is measured.
    """
    start = time.monotonic()
    until = start + seconds
    written = suite.stored.name
    files = Part(Kind.FILES, written)
    with _running(command(files, seconds)) as writer:
        show("limits")
        found = Found(_limits(command, until))
        for part in parts(suite):
            show(str(part))
            if (part.kind, part.model, part.side) == (Kind.SERVED, written, Side.OSSIA):
                writer.finish(min(until, time.monotonic() + part.seconds) - _LEAST_SECONDS)
            _measure(part, suite, found, command, until)
    found.seconds = time.monotonic() - start
    return found


def _limits(command: Command, until: float) -> dict[str, Any]:
    left = until - time.monotonic()
    with _running(command(Part(Kind.LIMITS), left)) as process:
        why = process.finish(until)
    found = (record for record in process.records if "card" in record)
    return next(found, limits.unknown({"card": why}))


def _measure(part: Part, suite: Suite, found: Found, command: Command, until: float) -> None:
    """Run a part, and note for each of its rows the figure or why there is none."""
    now = time.monotonic()
    left = min(part.seconds, until - now)
    why = f"{SKIPPED}: the time was up"
    if left >= _LEAST_SECONDS:
        with _running(command(part, left - _ENDING)) as process:
            why = process.finish(now + left)
        for record in process.records:
            try:
                told = Told.of(record)
            except (KeyError, TypeError, ValueError):
                continue
            found.told[told.case, told.side] = told
    for case in part.cases(suite):
        found.told.setdefault((case, part.side), Told(case, part.side, why=why))


class _Process:
    """A process that prints JSON, one object on a line."""

    def __init__(self, command: list[str], errors: IO[str]) -> None:
        self.records: list[dict[str, Any]] = []
        self._errors = errors
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                record = json.loads(line)
            except ValueError:  # what a library prints
                continue
            if isinstance(record, dict):
                self.records.append(record)

    def finish(self, until: float) -> str:
        """Wait for the end, until a time of `time.monotonic`; in words, how it ended."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            return f"{SKIPPED}: it took too long"
        self._reader.join()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        code = self._process.returncode
        said = f": {brief(lines[-1], 160)}" if lines and code else ""
        return f"its process ended with exit code {code}{said}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


@contextmanager
def _running(command: list[str]) -> Iterator[_Process]:
    """A process that ends with the block at the latest."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = _Process(command, errors)
        try:
            yield process
        finally:
            process.stop()
