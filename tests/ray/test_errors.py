"""What Ray's errors say of a replica and of the records, without a cluster."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# (ray is an extra.)

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ray import exceptions
from ray.serve.exceptions import DeploymentUnavailableError

from ossia.serve.replicas import deployment
from ossia.serve.replicas.cluster import RayReplica
from ossia.serve.replicas.replica import ReplicaLost, ReplicaUnreachable


class Failing:
    """A replica's handle, and what it responds: an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def options(self, **_options: Any) -> Failing:
        return self

    def remote(self, *_given: Any) -> Failing:
        return self

    async def __aiter__(self) -> AsyncGenerator[Any]:
        raise self._error
        yield

    def cancel(self) -> None:
        pass


def raised(error: Exception) -> Exception:
    """What a replica's beats raise when Ray raises that."""

    async def listen() -> None:
        async for _ in RayReplica("0", Failing(error)).beats():
            pass

    with pytest.raises(Exception) as caught:  # noqa: PT011
        asyncio.run(listen())
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ActorDiedError(),
        exceptions.OutOfMemoryError("the node ran out of memory"),
        exceptions.NodeDiedError("the node died"),
        exceptions.WorkerCrashedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_death_is_one(error):
    assert type(raised(error)) is ReplicaLost


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ActorUnavailableError("the network", None),
        exceptions.ObjectLostError("0" * 56, None, ""),
        DeploymentUnavailableError(SimpleNamespace(name="replica", app_name="app")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_no_death(error):
    assert type(raised(error)) is ReplicaUnreachable


def test_what_the_replica_raised_is_raised():
    cause = ReplicaUnreachable("the GPU fell off the bus")
    error = exceptions.RayTaskError("beats", "Traceback", cause, ip="127.0.0.1")
    assert raised(error.as_instanceof_cause()) is cause
    bug = exceptions.RayTaskError("beats", "Traceback", KeyError("x"), ip="127.0.0.1")
    assert isinstance(raised(bug.as_instanceof_cause()), exceptions.RayTaskError)


def test_a_replica_goes_only_when_the_records_have_died(monkeypatch):
    errors = [
        exceptions.ActorUnavailableError("started again", None),
        exceptions.GetTimeoutError(),
        exceptions.ActorDiedError(),
    ]
    deleted: list[int] = []

    def get(_ref: Any) -> Any:
        raise errors.pop(0)

    monkeypatch.setattr(deployment, "ORPHAN_SECONDS", 0.0)
    monkeypatch.setattr(deployment.ray, "get", get)
    context = SimpleNamespace(app_name="app")
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(
        deployment.serve, "delete", lambda _name, _blocking: deleted.append(len(errors))
    )
    records = SimpleNamespace(size=SimpleNamespace(remote=lambda: None))
    deployment._watch(records)
    assert deleted == [0]
