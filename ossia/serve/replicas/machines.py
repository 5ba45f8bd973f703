"""What each replica gets of a cluster's machines: a card, or a share of the processors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions
from ossia.serve.options import ServeOptions
from ossia.tools.mcp import Address


@dataclass(frozen=True)
class Machine:
    """What a machine of the cluster has."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Share:
    """What a replica gets. beside: how many replicas there may be on its machine."""

    cpus: int
    gpus: int
    beside: int


def check(options: ServeOptions, load: LoadOptions) -> None:
    """Raise OssiaError for options that replicas cannot have."""
    if load.devices > 1:
        raise OssiaError("--devices: a replica has one device; leave it or --replicas out")
    if load.device not in ("auto", "cpu", "cuda"):
        raise OssiaError(
            f"--device {load.device}: Ray gives each replica a card of its own; write --device cuda"
        )
    for text in options.mcp:
        if Address.of(text).url is None:
            raise OssiaError(
                f"--mcp {text}: each replica would run a server of its own, which share nothing; "
                "give the URL of one that runs"
            )


def share(machines: Sequence[Machine], replicas: int, load: LoadOptions) -> Share:
    """What each of so many replicas gets, as equal parts as they can be. Raises OssiaError if they
    do not fit.
    """
    gpus = sum(machine.gpus for machine in machines)
    if load.device == "cuda" or (load.device == "auto" and gpus >= replicas):
        if gpus < replicas:
            raise OssiaError(f"--replicas {replicas}: each needs a GPU, and the cluster has {gpus}")
        return Share(1, 1, max(machine.gpus for machine in machines))
    cpus = load.threads or _threads(machines, replicas)
    if (fit := sum(machine.cpus // cpus for machine in machines)) < replicas:
        each = ", ".join(str(machine.cpus) for machine in machines)
        raise OssiaError(
            f"--replicas {replicas}: {fit} of {cpus} threads fit; processors by machine: "
            f"{each}; lower --replicas or --threads"
        )
    return Share(cpus, 0, min(replicas, max(machine.cpus for machine in machines) // cpus))


def _threads(machines: Sequence[Machine], replicas: int) -> int:
    """The most threads of which each replica can have as many; 1 if they do not fit."""
    most = max((machine.cpus for machine in machines), default=1)
    for threads in range(max(1, most), 1, -1):
        if sum(machine.cpus // threads for machine in machines) >= replicas:
            return threads
    return 1


def settings(
    share: Share, load: LoadOptions, engine: EngineOptions, free: int | None
) -> tuple[LoadOptions, EngineOptions]:
    """The options of a replica that keeps to its share. free: bytes of memory that are free on its
    machine, if that is known.
    """
    if share.gpus:
        return replace(load, device="cuda"), engine
    load = replace(load, device="cpu", threads=share.cpus)
    if engine.kv_memory is None and share.beside > 1 and free is not None:
        # Half of what is free, as one process would take, for all of them.
        engine = replace(engine, kv_memory=max(1, free // (2 * share.beside)))
    return load, engine
