"""An x-ray of a reply while it is written: a second, observed pass of the model over its text.

The pass has keys and values of its own, and runs on the engine's thread between two steps, so that
no step that the engine records contains any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ossia.engine import Engine
from ossia.errors import OssiaError

if TYPE_CHECKING:
    from ossia.engine.driver import Driver
    from ossia.engine.worker import Steps
    from ossia.insight.xray.live import Live, Reading


class Watch:
    """Sees a text that grows; for one task at a time."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._live: Live | None = None
        self._prompt: Sequence[int] | None = None
        self._read = 0  # tokens, the prompt's included
        self.closed = False

    async def begin(self, prompt: Sequence[int]) -> None:
        """A text begins with these ids. Raises OssiaError if the engine has no model to look into,
        and from a closed one.
        """
        self._live = await asyncio.wrap_future(self._driver.call(_live))
        self._prompt, self._read = prompt, 0

    def close(self) -> None:
        """Free its memory."""
        self.closed, self._live = True, None

    async def read(self, prompt: Sequence[int], written: Sequence[int]) -> list[Reading]:
        """The readings of what has been written since the last time. prompt: as `begin` was given
        it; another one begins another text.
        """
        if self._prompt is not prompt:
            await self.begin(prompt)
        assert self._live is not None
        from ossia.insight.xray.live import CHUNK

        unread = [*prompt, *written][self._read :]
        readings: list[Reading] = []
        for start in range(0, len(unread), CHUNK):
            work = partial(_read, self._live, unread[start : start + CHUNK])
            readings += await asyncio.wrap_future(self._driver.call(work))
        new = max(0, self._read + len(unread) - max(self._read, len(prompt)))
        self._read += len(unread)
        return readings[len(readings) - new :]


def _live(engine: Steps) -> Live:
    if not isinstance(engine, Engine):
        raise OssiaError("there is no model here that an x-ray could look into")
    from ossia.insight.xray.live import Live

    return Live(engine.runner.decoder, engine.max_length)


def _read(live: Live, ids: Sequence[int], _engine: Steps) -> list[Reading]:
    return live.read(ids)
