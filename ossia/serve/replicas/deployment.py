"""A replica as Ray Serve runs it: the model, behind methods that the front end calls."""

# pyright: reportMissingImports=false
# (ray is an extra.)

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from ossia.api import LLM
from ossia.errors import OssiaError
from ossia.options import EngineOptions, LoadOptions
from ossia.serve import opening
from ossia.serve.app import application
from ossia.serve.entrance import Rules
from ossia.serve.gate import Message
from ossia.serve.options import ServeOptions
from ossia.serve.replicas.machines import Share, settings
from ossia.serve.replicas.records import RemoteStore, SharedRecords
from ossia.serve.replicas.replica import Asked, Beat
from ossia.serve.replicas.worker import Worker
from ossia.serve.responses.store import ResponseStore
from ossia.system.memory import available_memory

ORPHAN_SECONDS = 10.0  # between looks whether the front end still lives


@dataclass(frozen=True)
class Recipe:
    """What a replica is made of. path: the model, which is there on each machine. keys: whether the
    front end asks for some.
    """

    path: str | None
    options: ServeOptions
    load: LoadOptions
    engine: EngineOptions
    share: Share
    keys: bool


class Model:
    """The deployment's class. records: the actor that keeps the responses of all replicas."""

    def __init__(self, recipe: Recipe, records: Any) -> None:
        self._stack = ExitStack()
        try:
            self._open(recipe, records)
        except OssiaError as error:  # which Serve would tell among tracebacks
            ray.get(records.refuse.remote(str(error)))
            raise
        threading.Thread(target=_watch, args=(records,), daemon=True).start()

    def _open(self, recipe: Recipe, records: Any) -> None:
        load, engine = settings(recipe.share, recipe.load, recipe.engine, available_memory())
        tools = self._stack.enter_context(opening.tools(recipe.options))
        llm = self._stack.enter_context(LLM.load(recipe.path, load, engine))
        service = opening.service(llm, recipe.path, recipe.options, tools(llm))
        run = uuid.uuid4().hex

        def call(name: str, *given: Any) -> Any:
            try:
                return ray.get(getattr(records, name).remote(*given))
            except RayTaskError as error:  # what the records raised, without Ray's traceback
                raise error.cause from None
            except RayError as error:
                raise OssiaError(f"responses cannot be kept: {error}") from error

        app = application(
            service,
            Rules(max_body=recipe.options.max_body_bytes),
            store=RemoteStore(call, run),
            documented_keys=recipe.keys,
        )
        self._worker = Worker(app, llm, run, _cache_tokens(llm, engine))
        self._about = opening.about(service)

    async def about(self) -> dict[str, Any]:
        """What runs here, in words."""
        return self._about

    async def answer(self, asked: Asked) -> AsyncGenerator[list[Message]]:
        async with aclosing(self._worker.answer(asked)) as batches:
            async for batch in batches:
                yield batch

    async def beats(self) -> AsyncGenerator[Beat]:
        async with aclosing(self._worker.beats()) as beats:
            async for beat in beats:
                yield beat

    def check_health(self) -> None:
        """Raises if this process is to be replaced; Serve asks."""
        if not self._worker.healthy():
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        self._stack.close()


class RecordsActor:
    """The responses of all replicas, in an actor that ends with the front end."""

    def __init__(self, options: ServeOptions) -> None:
        store = ResponseStore(options.responses, **opening.bounds(options))
        self._records, self._refused = SharedRecords(store), ""

    def refuse(self, why: str) -> None:
        """Note why a replica cannot start."""
        self._refused = why

    def refused(self) -> str:
        return self._refused

    def key(self) -> bytes:
        return self._records.key()

    def put(self, *given: Any) -> None:
        self._records.put(*given)

    def get(self, id: str) -> Any:
        return self._records.get(id)

    def delete(self, id: str) -> bool:
        return self._records.delete(id)

    def size(self) -> tuple[int, int]:
        return self._records.size()

    def running_in(self, id: str) -> str | None:
        return self._records.running_in(id)

    def lost(self, run: str) -> None:
        self._records.lost(run)

    def close(self) -> None:
        self._records.close()


def _cache_tokens(llm: LLM, engine: EngineOptions) -> int:
    """The most tokens of earlier texts that the prefix cache holds."""
    stats = llm.stats().engine
    if stats is None or not engine.prefix_cache:
        return 0
    return max(counts.total for counts in stats.pages.values()) * engine.page_size


def _watch(records: Any) -> None:
    """Have this replica removed once the front end has died, which can no longer do it."""
    over = threading.Event()
    while not over.wait(ORPHAN_SECONDS):
        try:
            ray.get(records.size.remote())
        except ActorDiedError:
            serve.delete(serve.get_replica_context().app_name, _blocking=False)
            return
        except RayError:  # it may be a moment's: the actor is started again
            continue
