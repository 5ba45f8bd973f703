"""One endpoint before replicas: each request goes to one of them, and to another if that one dies
before the client has received anything.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ossia.serve.bodies import AT_ONCE
from ossia.serve.errors import ApiError, failure, json_response
from ossia.serve.gate import Message, Receive, Send
from ossia.serve.limits import Permits
from ossia.serve.replicas.answer import Answer, parsed, read, unless_hung_up
from ossia.serve.replicas.balance import Balance, Place
from ossia.serve.replicas.figures import Figures
from ossia.serve.replicas.prefix import Chain, chain
from ossia.serve.replicas.replica import (
    Asked,
    Records,
    Replica,
    ReplicaLost,
    ReplicaUnreachable,
)

GENERATING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
MOST_DEATHS = 2  # of replicas under one request: it may be the request that kills them
WAIT_SECONDS = 120.0  # for a replica to be up
_MOST_CONVERSATIONS = 4096
_LOOK_SECONDS = 0.5
_METRICS_SECONDS = 5.0
_ELSEWHERE = (429, 503)  # a full queue, a lost device: another replica may answer
_RESPONSE = re.compile(r"/v1/responses/(resp_\w+)")
_log = logging.getLogger(__name__)


class Front:
    """An ASGI application before replicas, to stand behind a Gate. max_per_key: the most requests
    of one key that run at a time. most_waiting and wait_seconds: how many requests wait while no
    replica is up, and how long. tasks: those that wait for responses in the background.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        records: Records,
        *,
        max_per_key: int | None = None,
        most_waiting: int = 1024,
        wait_seconds: float = WAIT_SECONDS,
        balance: Balance | None = None,
    ) -> None:
        self.places = [Place(replica) for replica in replicas]
        self.tasks: set[asyncio.Task[Any]] = set()
        self.figures = Figures(self.places)
        self._records, self._wait_seconds = records, wait_seconds
        self._most_waiting, self._waiting = most_waiting, 0
        self._permits = Permits(max_per_key)
        self._balance = balance or Balance()
        self._watches: list[asyncio.Task[None]] = []
        self._attempts: dict[asyncio.Task[bool], tuple[Place, Answer]] = {}
        self._made: dict[str, Chain] = {}  # by responses' ids
        self._heard = asyncio.Event()  # another one for each wait

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            raise ValueError(f"there is no {scope['type']}")
        answer = Answer(scope["path"], send)
        try:
            if (own := self._own(scope["path"])) is not None and scope["method"] == "GET":
                return await (await own())(scope, receive, send)
            asked = await read(scope, receive)
            await unless_hung_up(receive, answer, self._serve(asked, scope["path"], answer))
        except HTTPException as error:
            refused = ApiError(error.status_code, str(error.detail))
            return await refused.response(scope["path"])(scope, receive, send)
        except Exception as error:
            if answer.begun:  # the connection ends with what there is
                raise
            return await failure(error).response(scope["path"])(scope, receive, send)

    def _own(self, path: str) -> Callable[[], Coroutine[Any, Any, Response]] | None:
        return {"/health": self._health, "/ready": self._ready, "/metrics": self._metrics}.get(path)

    async def _health(self) -> Response:
        return json_response({"status": "ok"})

    async def _ready(self) -> Response:
        up = [place for place in self.places if place.up]
        if all(place.full for place in up):
            reason = "the queues are full" if up else "no replica is up"
            raise ApiError(503, reason, code="not_ready")
        return json_response({"status": "ok"})

    async def _metrics(self) -> Response:
        """The figures of all replicas, each under its name, and the front end's own."""
        up = [place.replica for place in self.places if place.up]
        texts = await asyncio.gather(*map(_figures, up))
        found = {replica.name: text for replica, text in zip(up, texts, strict=True) if text}
        kept = await self._records.size()
        return Response(self.figures.page(found, kept), media_type=CONTENT_TYPE_LATEST)

    async def _serve(self, asked: Asked, path: str, answer: Answer) -> None:
        """Have a replica answer."""
        body: dict[str, Any] = {}
        if path in GENERATING:
            large = len(asked.body) > AT_ONCE
            body = await asyncio.to_thread(parsed, asked) if large else parsed(asked)
        end = self._permits.take() if body else lambda: None
        try:
            pinned, blocks = await self._belongs(path, body)
            place = await self._forward(asked, pinned, blocks, answer)
            if answer.made is not None:
                self._note(answer.made, blocks)
                if body.get("background") is True:
                    end = self._hold(answer.made, place, end)
        finally:
            end()

    async def _belongs(self, path: str, body: dict[str, Any]) -> tuple[str | None, Chain]:
        """The run of a replica that alone can answer, if any, and how the prompt begins."""
        if (named := _RESPONSE.match(path)) is not None:
            return await self._records.running_in(named[1]), ()
        earlier = body.get("previous_response_id")
        if not isinstance(earlier, str):
            return None, chain(body)
        if (pinned := await self._records.running_in(earlier)) is not None:
            return pinned, ()
        return None, chain(body, self._made.get(earlier, ()))

    async def _forward(
        self, asked: Asked, pinned: str | None, blocks: Chain, answer: Answer
    ) -> Place:
        """Have replicas answer until one has, which is returned."""
        deaths, full = 0, set[Place]()
        while True:
            place, pinned = await self._place(pinned, blocks, full)
            others = [one for one in self._up() if one is not place and one not in full]
            answer.may_refuse = pinned is not None or not others
            run = place.run
            try:
                if await self._attempt(place, asked, blocks, answer):
                    return place
                full.add(place)
                continue
            except ReplicaLost as error:
                await self._lost(place, run, error)
            if answer.done:
                return place
            if answer.begun:
                self.figures.broken()
                await answer.broken()
                return place
            answer.forget()
            deaths += 1
            if deaths == MOST_DEATHS:
                message = f"{deaths} replicas died while they answered this request"
                raise ApiError(502, message, code="replica_lost")
            self.figures.retried()

    async def _attempt(self, place: Place, asked: Asked, blocks: Chain, answer: Answer) -> bool:
        """Have this replica answer; False if another one is to. Raises ReplicaLost, also as soon as
        it is known that the replica died, if nothing has come of it.
        """

        async def attempt() -> bool:
            with place.sent(blocks) as begun:
                async with aclosing(_messages(place.replica.send(asked))) as messages:
                    status = 0
                    async for message in messages:
                        status = message.get("status", status)
                        if status in _ELSEWHERE and not answer.may_refuse:
                            return False
                        if await answer.take(message) and status < 400:
                            begun()
            if not answer.done:
                raise ApiError(500, "the answer broke off; the log says why", code="internal_error")
            return True

        self.figures.sent(place, blocks)
        task = asyncio.create_task(attempt())
        self._attempts[task] = place, answer
        try:
            await asyncio.wait((task,))
        finally:
            del self._attempts[task]
            task.cancel()
        if task.cancelled():
            raise ReplicaLost(f"replica {place.replica.name} died")
        return task.result()

    async def _place(
        self, pinned: str | None, blocks: Chain, full: Collection[Place]
    ) -> tuple[Place, str | None]:
        """Where a request goes, and still the run that alone can answer it, if that lives."""
        if pinned is not None:
            if (place := await self._running(pinned)) is not None:
                return place, pinned
            await self._records.lost(pinned)  # so that any replica knows that it failed
        return self._balance.choose(blocks, self._up(full) or await self._risen()), None

    async def _running(self, run: str) -> Place | None:
        """The replica whose process this is; None if it has died."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                while True:
                    for place in self.places:
                        if place.alive and place.run == run:
                            return place
                    if not any(place.up and place.run is None for place in self.places):
                        return None
                    await self._heard.wait()  # it may be one that has not been heard yet
        except TimeoutError:
            message = "the replica that makes this response cannot be reached"
            raise ApiError(503, message, code="not_ready") from None

    async def _risen(self) -> list[Place]:
        """The replicas that are up, once one is."""
        if self._waiting >= self._most_waiting:
            raise ApiError(429, "no replica is up, and many requests wait", code="queue_full")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                while not (up := self._up()):
                    await self._heard.wait()
            return up
        except TimeoutError:
            raise ApiError(503, "no replica is up", code="not_ready") from None
        finally:
            self._waiting -= 1

    def _up(self, full: Collection[Place] = ()) -> list[Place]:
        """The replicas that take requests, without those that just refused one."""
        up = [place for place in self.places if place.up]
        return [place for place in up if place not in full] or up

    async def _lost(self, place: Place, run: str | None, error: ReplicaLost) -> None:
        """Note what a call came to that was made while `run` was heard last, unless another process
        has been heard since.
        """
        if place.run != run:
            return
        if isinstance(error, ReplicaUnreachable):
            self._rest(place, error)
            return
        if place.alive:
            _log.warning("replica %s died", place.replica.name)
            place.lose()
            self.figures.died(place)
            for task, (other, answer) in self._attempts.items():
                if other is place and not answer.begun:
                    task.cancel()
            self._tell()
        if run is not None:
            await self._records.lost(run)

    def _rest(self, place: Place, error: Exception) -> None:
        """Send a replica nothing until it is heard again. What it has may still go on."""
        if place.up:
            _log.warning("replica %s is not used: %s", place.replica.name, error)
            place.up = False
            self._tell()

    def _tell(self) -> None:
        """Have those look again that wait for a replica."""
        self._heard.set()
        self._heard = asyncio.Event()

    def _note(self, id: str, blocks: Chain) -> None:
        """Remember how the prompt of a response begins, for those that go on from it."""
        self._made[id] = blocks
        if len(self._made) > _MOST_CONVERSATIONS:
            del self._made[next(iter(self._made))]

    def _hold(self, id: str, place: Place, end: Callable[[], None]) -> Callable[[], None]:
        """Call `end` once a response in the background has ended, and count it until then."""
        place.running += 1

        async def ended() -> None:
            try:
                while await self._records.running_in(id) is not None:
                    await asyncio.sleep(_LOOK_SECONDS)
            finally:
                place.running -= 1
                end()

        task = asyncio.create_task(ended())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return lambda: None

    async def _live(self, receive: Receive, send: Send) -> None:
        """Watch the replicas while the server runs."""
        await receive()
        self._watches = [asyncio.create_task(self._watch(place)) for place in self.places]
        await send({"type": "lifespan.startup.complete"})
        with suppress(asyncio.CancelledError):  # of a server that may not wait
            await receive()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self, place: Place) -> None:
        """Listen to a replica, whatever goes wrong meanwhile."""
        while True:
            try:
                await self._listen(place)
            except Exception as error:
                _log.error("replica %s was not heard", place.replica.name, exc_info=error)
                self._rest(place, error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _listen(self, place: Place) -> None:
        """Hear a replica's beats until it is lost."""
        name = place.replica.name
        try:
            async with aclosing(place.replica.beats()) as beats:
                async for beat in beats:
                    if place.run not in (None, beat.run):  # whose death nobody may have told of
                        await self._lost(place, place.run, ReplicaLost(f"replica {name} died"))
                    if not place.up:
                        _log.warning("replica %s is up again", name)
                    place.hear(beat)
                    for level, line in beat.log:
                        _log.log(level, "replica %s: %s", name, line)
                    self._tell()
            raise ReplicaUnreachable(f"replica {name} beats no more")
        except ReplicaLost as error:
            await self._lost(place, place.run, error)


async def _messages(batches: AsyncGenerator[Sequence[Message]]) -> AsyncGenerator[Message]:
    async with aclosing(batches):
        async for batch in batches:
            for message in batch:
                yield message


async def _figures(replica: Replica) -> str | None:
    """A replica's own page of figures; None if it does not answer."""
    body = b""
    try:
        async with asyncio.timeout(_METRICS_SECONDS):
            async for batch in replica.send(Asked("GET", b"/metrics", b"", [])):
                body += b"".join(message.get("body", b"") for message in batch)
    except (ReplicaLost, TimeoutError):
        return None
    return body.decode()
