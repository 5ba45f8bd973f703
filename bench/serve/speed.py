"""Tokens per second of a server at several numbers of clients, and what it adds to its engine."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.serve.http import Timed, stream
from bench.serve.process import Server


@dataclass(frozen=True)
class Load:
    """Each of `clients` sends `requests` one after the other, of prompts of that many random ids,
    and reads that many tokens of each answer.
    """

    clients: int
    requests: int = 2
    prompt: int = 128
    tokens: int = 64


@dataclass(frozen=True)
class Reading:
    """tokens_per_second: of all clients together, prompts included in the time. first: the median
    of the seconds to the first token, between: of those between two. after: how much later than the
    engine made it, at the mean, a client has the first token; None of a server that does not tell.
    """

    tokens_per_second: float
    first: float
    between: float
    after: float | None


def measure(server: Server, load: Load, vocab_size: int, seed: int) -> Reading:
    """One reading. Prompts of another seed share nothing, so no prefix cache has them."""
    before = server.first_token_seconds()
    began = time.perf_counter()
    answers = asyncio.run(_clients(server, load, vocab_size, seed))
    seconds = time.perf_counter() - began
    between = [(answer.arrivals[-1] - answer.arrivals[0]) / (load.tokens - 1) for answer in answers]
    first = [answer.arrivals[0] for answer in answers]
    made = server.first_token_seconds()
    after = None
    if before is not None and made is not None:
        after = statistics.mean(first) - (made - before) / len(answers)
    return Reading(
        load.clients * load.requests * load.tokens / seconds,
        statistics.median(first),
        statistics.median(between),
        after,
    )


async def _clients(server: Server, load: Load, vocab_size: int, seed: int) -> Sequence[Timed]:
    async def client(n: int) -> list[Timed]:
        draw = random.Random(f"{seed} {n}")
        return [
            await _completion(
                server, [draw.randrange(vocab_size) for _ in range(load.prompt)], load
            )
            for _ in range(load.requests)
        ]

    found = await asyncio.gather(*map(client, range(load.clients)))
    return [answer for answers in found for answer in answers]


async def _completion(server: Server, prompt: list[int], load: Load) -> Timed:
    return await stream(
        server.port,
        "/v1/completions",
        {
            "model": server.model,
            "prompt": prompt,
            "max_tokens": load.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        },
    )


def turns(server: Server, vocab_size: int, *, history: int, new: int, count: int) -> list[float]:
    """Seconds to the first token of a prompt of `new` ids, then of `count` prompts that each add
    `new` ids to a conversation that began with `history` of them.
    """
    draw = random.Random(history)
    load = Load(1, tokens=2)

    def first(prompt: list[int]) -> float:
        return asyncio.run(_completion(server, prompt, load)).arrivals[0]

    def ids(number: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(number)]

    alone = first(ids(new))
    conversation = ids(history)
    first(conversation)
    seconds = [alone]
    for _ in range(count):
        conversation += ids(new)
        seconds.append(first(conversation))
    return seconds
