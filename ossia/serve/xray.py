"""The x-ray of a reply that is streamed, as parts of its chunks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ossia.api import AsyncStream, Watch
from ossia.serve.rounds import Rounds
from ossia.text import Tokenizer


class Xray:
    """What a second pass sees of a stream's reply, a little behind it."""

    def __init__(self, watch: Watch, stream: AsyncStream | Rounds, tokenizer: Tokenizer) -> None:
        self._watch, self._stream, self._tokenizer = watch, stream, tokenizer
        self._task: asyncio.Task[list[dict[str, Any]]] | None = None
        self._seen: tuple[object, int] | None = None  # the prompt, and how much was written

    def ready(self) -> list[dict[str, Any]]:
        """The tokens that have been seen since the last time; does not wait for more."""
        found: list[dict[str, Any]] = []
        if self._task is not None and self._task.done():
            found = self._task.result()
            self._task = None
        if self._task is None:
            self._begin()
        return found

    async def rest(self) -> list[dict[str, Any]]:
        """Those that are left, once the stream has ended."""
        found: list[dict[str, Any]] = []
        while self._task is not None or self._begin():
            assert self._task is not None
            found += await self._task
            self._task = None
        return found

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._watch.close()

    def _begin(self) -> bool:
        """Look at what has been written since; False if nothing has."""
        prompt, outputs = self._stream.text
        if self._seen == (id(prompt), len(outputs)) or not outputs:
            return False
        self._seen = id(prompt), len(outputs)
        self._task = asyncio.create_task(self._look(prompt, [output.token for output in outputs]))
        return True

    async def _look(self, prompt: Sequence[int], written: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "token": self._tokenizer.token_bytes(reading.token).decode(errors="replace"),
                "logprob": _rounded(reading.logprob),
                "entropy": _rounded(reading.entropy),
                "rank": reading.rank,
                "attention": [_rounded(share) for share in reading.attention],
                "experts": reading.experts,
            }
            for reading in await self._watch.read(prompt, written)
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)
