"""Replicas as applications of Ray Serve: started on a cluster, called, and removed.

Each replica is an application of its own, of one deployment with one process, so that the front end
names the one that it calls, and a replica keeps its name when Serve starts its process again.
"""

# pyright: reportMissingImports=false
# (ray is an extra.)

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import serve
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ossia.errors import OssiaError
from ossia.serve.gate import Message
from ossia.serve.replicas.deployment import Model, Recipe, RecordsActor
from ossia.serve.replicas.machines import Machine, Share
from ossia.serve.replicas.replica import Asked, Beat, ReplicaLost, ReplicaUnreachable
from ossia.system.processors import usable

OBJECT_STORE = 128 * 2**20  # of a Ray of this command's own: no weights pass through it
_CALLS = 100_000  # at a time, which the engine's own queue bounds
_HEALTH_SECONDS = 1.0  # between looks at a replica; its recovery waits for one
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_UNREACHABLE = (ActorUnavailableError, ObjectLostError, RayServeException)
_LOST = (
    RayActorError,  # of which ActorUnavailableError is one
    WorkerCrashedError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
)


class RayReplica:
    """A replica by its handle."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self._handle = name, handle

    def send(self, asked: Asked) -> AsyncGenerator[Sequence[Message]]:
        return self._items("answer", asked)

    def beats(self) -> AsyncGenerator[Beat]:
        return self._items("beats")

    async def _items(self, method: str, *given: Any) -> AsyncGenerator[Any]:
        response = self._handle.options(method_name=method, stream=True).remote(*given)
        try:
            async for item in response:
                yield item
        except RayTaskError as error:  # what the replica raised, without Ray's traceback
            if isinstance(error.cause, OssiaError):
                raise error.cause from None
            raise
        except _UNREACHABLE as error:
            raise ReplicaUnreachable(f"replica {self.name} cannot be reached: {error}") from error
        except _LOST as error:
            raise ReplicaLost(f"replica {self.name} died") from error
        finally:
            response.cancel()


class RayRecords:
    """The records by their actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def running_in(self, id: str) -> str | None:
        return await self._actor.running_in.remote(id)

    async def lost(self, run: str) -> None:
        await self._actor.lost.remote(run)

    async def size(self) -> tuple[int, int]:
        return await self._actor.size.remote()


@dataclass(frozen=True)
class Cluster:
    """Replicas that take requests. about: what the first of them runs."""

    replicas: list[RayReplica]
    records: RayRecords
    about: dict[str, Any]


@contextmanager
def connected(address: str | None) -> Iterator[list[Machine]]:
    """While this process is part of a cluster: its machines. address: as Ray has it; None is a Ray
    of its own on this machine, which ends with the block. Raises OssiaError.
    """
    if address is not None and address.startswith("ray://"):
        raise OssiaError(
            f"--cluster {address}: Ray's client cannot serve; run this on a machine of the "
            "cluster, with --cluster auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with ExitStack() as stack:
        if address is None:
            temporary = TemporaryDirectory(prefix="ossia-ray-", ignore_cleanup_errors=True)
            folder = stack.enter_context(temporary)
            stack.callback(ray.shutdown)  # before the folder goes, and if it starts in part only
            _start(folder, quiet)
        else:
            stack.callback(ray.shutdown)
            _join(address, quiet)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        yield _machines()


def _start(folder: str, quiet: dict[str, Any]) -> None:
    """Start a Ray whose files are in a folder. Raises OssiaError."""
    try:
        ray.init(
            "local",
            num_cpus=usable(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            **quiet,
        )
    except Exception as error:  # Ray raises bare ones, as when it has not started in 30 seconds
        raise OssiaError(f"Ray did not start on this machine: {_first_line(error)}") from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    """Be part of a cluster. Raises OssiaError."""
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise OssiaError(f"--cluster {address}: {_first_line(error)}") from error


def _machines() -> list[Machine]:
    having = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in having]


def _check_free(share: Share, replicas: int) -> None:
    """Raise OssiaError if others use what replicas need: Serve would wait for it for ever."""
    free = ray.available_resources()
    for kind, each in (("CPU", share.cpus), ("GPU", share.gpus)):
        if (left := free.get(kind, 0)) < each * replicas:
            raise OssiaError(
                f"--replicas {replicas}: {each * replicas} {kind}s are needed, and the cluster has "
                f"{left:g} free; see `ray status`"
            )


@contextmanager
def deployed(recipe: Recipe, replicas: int) -> Iterator[Cluster]:
    """Start replicas on the cluster that this process is part of, and remove them in the end.
    Raises OssiaError if the model cannot be opened.
    """
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    records = (
        ray.remote(RecordsActor)
        .options(num_cpus=0, max_concurrency=8, max_restarts=-1, scheduling_strategy=node)
        .remote(recipe.options)
    )
    try:
        ray.get(records.key.remote())
    except RayActorError as error:
        raise OssiaError(_cause(error)) from error
    _check_free(recipe.share, replicas)
    family = f"ossia-{secrets.token_hex(4)}"
    names = [f"{family}-{n}" for n in range(replicas)]
    deployment = serve.deployment(Model).options(
        name="replica",
        max_ongoing_requests=_CALLS,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": recipe.share.cpus, "num_gpus": recipe.share.gpus},
        logging_config=_QUIET,
    )
    try:
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        targets = [
            serve.RunTarget(deployment.bind(recipe, records), name=name, route_prefix=None)
            for name in names
        ]
        try:
            handles = serve.run_many(targets)
        except (RuntimeError, RayError) as error:
            why = ray.get(records.refused.remote())
            raise OssiaError(why or f"the replicas did not start: {error}") from error
        found = [RayReplica(str(n), handle) for n, handle in enumerate(handles)]
        about = handles[0].about.remote().result()
        yield Cluster(found, RayRecords(records), about)
    finally:
        for name in names:
            with suppress(Exception):  # it may never have been there
                serve.delete(name, _blocking=False)
        with suppress(RayError):
            ray.get(records.close.remote(), timeout=10)
        ray.kill(records)


def _cause(error: Exception) -> str:
    """What an actor's constructor raised, without Ray's traceback."""
    lines = [line for line in str(error).splitlines() if "OssiaError: " in line]
    return lines[-1].partition("OssiaError: ")[2] if lines else str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
