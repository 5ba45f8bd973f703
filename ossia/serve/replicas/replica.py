"""What passes between the front end and a replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ossia.errors import OssiaError
from ossia.serve.gate import Message


class ReplicaLost(OssiaError):
    """The replica's process died."""


class ReplicaUnreachable(ReplicaLost):
    """The replica cannot be reached or does not work at present; its process may still live."""


@dataclass(frozen=True)
class Asked:
    """An HTTP request, whole."""

    method: str
    path: bytes  # as it was sent, percent-encoded
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = b""


@dataclass(frozen=True)
class Beat:
    """How a replica is. run: which of its processes this is. cache_tokens: what its prefix cache
    holds at the most. log: lines since the last one, each with its level.
    """

    run: str
    unfinished: int = 0
    max_queue: int = 1
    cache_tokens: int = 1 << 20
    log: Sequence[tuple[int, str]] = field(default=())


class Replica(Protocol):
    """A replica, which keeps its name when its process is another. Both raise ReplicaLost."""

    name: str

    def send(self, asked: Asked) -> AsyncGenerator[Sequence[Message]]:
        """The ASGI messages that answer a request, several at a time where they are there. Closing
        the iterator cancels the request.
        """
        ...

    def beats(self) -> AsyncGenerator[Beat]:
        """A beat at once, as soon as the replica is there, and one each second."""
        ...


class Records(Protocol):
    """What the front end asks of the responses that all replicas keep together."""

    async def running_in(self, id: str) -> str | None:
        """The run of a replica in which a response runs in the background; None if it does not."""
        ...

    async def lost(self, run: str) -> None:
        """Have the responses fail that ran in a process that has died."""
        ...

    async def size(self) -> tuple[int, int]:
        """How many responses are kept, and their bytes."""
        ...
