"""A server in a process of its own: started, asked for its figures, and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 300.0
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """model: its name in requests. metrics: whether it has those of `ossia serve`."""

    pid: int
    port: int
    model: str
    metrics: bool = True

    def figures(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        text = get(self.port, "/metrics").decode()
        return {
            name + (labels or ""): float(value) for name, labels, value in _SAMPLE.findall(text)
        }

    def first_token_seconds(self) -> float | None:
        """From submission to the first token, of all requests together; None if unknown."""
        return self.figures()["ossia_time_to_first_token_seconds_sum"] if self.metrics else None

    def memory(self) -> int:
        """Bytes of memory that the process holds by itself, without mapped files."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None, "Linux counts it since 4.5"
        return int(found[1]) * 1024


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return answer.read()


@contextmanager
def ossia(arguments: Sequence[str], threads: int | None = None) -> Iterator[Server]:
    """`ossia serve` with these arguments, on a free port."""
    command = [sys.executable, "-m", "ossia", "serve", "--json", "--port", "0", *arguments]
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with _stopped(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")
        record = json.loads(line)
        port = int(record["url"].rpartition(":")[2].partition("/")[0])
        yield Server(process.pid, port, record["model"])


@contextmanager
def peer(command: Sequence[str], model: str) -> Iterator[Server]:
    """Another server, whose command takes --host and --port, once its /health answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with _stopped(process):
        began = time.monotonic()
        while not _is_healthy(port):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            if time.monotonic() - began > _START_SECONDS:
                raise RuntimeError(f"{' '.join(command)} does not answer")
            time.sleep(0.2)
        yield Server(process.pid, port, model, metrics=False)


def _is_healthy(port: int) -> bool:
    try:
        get(port, "/health")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


@contextmanager
def _stopped(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
