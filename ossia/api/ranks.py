"""Loading a model onto several devices: a process for each, of which this one leads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ossia import checkpoint
from ossia.engine.ranks import Leader, follow
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.options import LoadOptions
from ossia.system.processors import usable

_FOLLOWER = "from ossia.api.ranks import follower; follower()"
_START = timedelta(minutes=10)  # in which all processes must have loaded their shares
_IDLE = timedelta(days=3650)  # between two requests; a process that ends is noticed at once


def lead(folder: Path, options: LoadOptions) -> tuple[Decoder, Leader, Callable[[], object]]:
    """The first of `options.devices` shares of a model, after processes with the others started.
    They end with the leader, or when the function is called. Raises OssiaError for what cannot be
    loaded.
    """
    size = options.devices
    if dist.is_initialized():
        raise OssiaError("--devices: this process already belongs to a group of processes")
    device = _device(options)
    if options.threads is None and device == "cpu":
        options = replace(options, threads=max(1, usable() // size))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_start(rank, port, folder, options) for rank in range(1, size)]
    leader = Leader(sharing=size if device == "cpu" else 1)
    end = weakref.finalize(leader, _end, processes)
    try:
        return _join(0, port, folder, options), leader, end
    except BaseException:
        end()
        raise


def _device(options: LoadOptions) -> str:
    """The kind of the devices. Raises OssiaError if there are not as many."""
    kind, _, number = options.device.partition(":")
    gpus = torch.cuda.device_count()
    if kind == "auto":
        return "cuda" if gpus >= options.devices else "cpu"
    if kind not in ("cpu", "cuda") or number:
        raise OssiaError(f"--devices {options.devices} needs --device cuda or cpu, not {kind}")
    if kind == "cuda" and gpus < options.devices:
        raise OssiaError(f"--devices {options.devices}: there are {gpus} CUDA devices")
    return kind


def _start(rank: int, port: int, folder: Path, options: LoadOptions) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-P", "-c", _FOLLOWER], stdin=subprocess.PIPE)
    message = {"rank": rank, "port": port, "folder": str(folder), "options": asdict(options)}
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return process


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        process.wait()
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(rank: int, port: int, folder: Path, options: LoadOptions) -> Decoder:
    """A rank's share of the model, once all ranks have theirs."""
    size, kind = options.devices, _device(options)
    store = TCPStore("127.0.0.1", port, size, rank == 0, timeout=_START)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_IDLE)
    decoder, problem = None, None
    try:
        device = f"cuda:{rank}" if kind == "cuda" else "cpu"
        decoder = checkpoint.load_share(folder, replace(options, device=device), rank)
    except OssiaError as error:
        problem = str(error)
    problems: list[Any] = [None] * size
    dist.all_gather_object(problems, problem)
    for problem in problems:
        if problem is not None:
            raise OssiaError(problem)
    assert decoder is not None
    return decoder


def follower() -> None:
    """The program of the other processes. It reads from its input what to load, and ends when that
    ends.
    """
    message = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_leader, daemon=True).start()
    options = LoadOptions(**message["options"])
    try:
        decoder = _join(message["rank"], message["port"], Path(message["folder"]), options)
    except OssiaError:  # which the leader reports
        os._exit(2)
    follow(decoder)


def _end_with_leader() -> None:
    sys.stdin.buffer.read()  # ends when the leader closes it, or dies
    os._exit(0)
