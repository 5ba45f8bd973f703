"""How many threads to train with. Threads that wait for each other at every operation lose far more
than their share where another process has a core: with two threads beside a busy process, a small
model was sixteen times as slow as with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import torch

_FIRST_TOKENS = 128
_ENOUGH_SECONDS = 0.1  # of one pass: it must outlast many turns of the scheduler
_TURNS = 3

# Seconds of a pass over at most so many tokens, and how many they were.
Pass = Callable[[int], tuple[float, int]]


def choose_threads(time_pass: Pass) -> dict[int, float]:
    """Set torch's threads to one or to all, whichever trains faster, and return the tokens per
    second of each; {} without measuring if there is no choice, or OMP_NUM_THREADS made it.
    """
    most = torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS"):
        return {}
    tokens = _enough(time_pass)
    seconds: dict[int, list[float]] = {1: [], most: []}
    for _ in range(_TURNS):
        for threads, measured in seconds.items():
            torch.set_num_threads(threads)
            measured.append(time_pass(tokens)[0])
    rates = {threads: tokens / median(measured) for threads, measured in seconds.items()}
    torch.set_num_threads(max(rates, key=lambda threads: rates[threads]))
    return rates


def _enough(time_pass: Pass) -> int:
    """Tokens whose pass takes long enough to be measured, or all of a batch."""
    time_pass(_FIRST_TOKENS)  # the first pass also allocates and initialises
    asked = _FIRST_TOKENS
    while True:
        seconds, tokens = time_pass(asked)
        if seconds >= _ENOUGH_SECONDS or tokens < asked:
            return tokens
        asked *= 2
