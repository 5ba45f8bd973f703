"""How to train fastest, by timing passes of the run itself: in which precision, and with how many
threads. Threads that wait for each other at every operation lose far more than their share where
another process has a core: with two threads beside a busy process, a small model was sixteen times
as slow as with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

import torch

from ossia.system.gpu import ran_out
from ossia.train.settings import Precision

_FIRST_TOKENS = 128
_ENOUGH_SECONDS = 0.1  # of one pass: it must outlast many turns of the scheduler
_TURNS = 3

# Seconds of a pass over at most so many tokens, and how many they were.
Pass = Callable[[int], tuple[float, int]]

Choice = TypeVar("Choice")


def choose_threads(time_pass: Pass) -> dict[int, float]:
    """Set torch's threads to one or to all, whichever trains faster, and return the tokens per
    second of each; {}, and no change, if there is no choice, OMP_NUM_THREADS made it, or a pass
    runs out of memory.
    """
    most = torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS"):
        return {}

    def use(threads: int) -> Pass:
        torch.set_num_threads(threads)
        return time_pass

    rates: dict[int, float] = {}
    with _if_it_fits():
        rates = _rates((1, most), use, _enough(time_pass))
    torch.set_num_threads(faster(rates) if rates else most)
    return rates


def compare_precisions(time_pass: Callable[[Precision], Pass]) -> dict[Precision, float]:
    """Tokens per second of passes in float32 and in bfloat16; 0 in one that runs out of memory.

    Raises torch.OutOfMemoryError if both do.
    """
    both = (Precision.FLOAT32, Precision.BFLOAT16)
    tokens: dict[Precision, int] = {}
    for precision in both:
        # Each allocates, initialises and perhaps compiles in its first pass.
        with _if_it_fits():
            tokens[precision] = _enough(time_pass(precision))
    if not tokens:
        raise torch.OutOfMemoryError("neither float32 nor bfloat16 fits")
    rates = _rates(tokens, time_pass, min(tokens.values()))
    return {precision: rates.get(precision, 0.0) for precision in both}


def faster(rates: dict[Choice, float]) -> Choice:
    """The choice with the highest rate."""
    return max(rates, key=lambda choice: rates[choice])


@contextmanager
def _if_it_fits() -> Iterator[None]:
    """End the block in silence where the memory of a GPU or of the host runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise


def _rates(
    choices: Iterable[Choice], with_choice: Callable[[Choice], Pass], tokens: int
) -> dict[Choice, float]:
    """Tokens per second of each choice, measured in turns."""
    seconds: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for _ in range(_TURNS):
        for choice, measured in seconds.items():
            measured.append(with_choice(choice)(tokens)[0])
    return {choice: tokens / median(measured) for choice, measured in seconds.items()}


def _enough(time_pass: Pass) -> int:
    """Tokens whose pass takes long enough to be measured, or all of a batch."""
    time_pass(_FIRST_TOKENS)  # the first pass also allocates and initialises
    asked, before = _FIRST_TOKENS, 0
    while True:
        seconds, tokens = time_pass(asked)
        if seconds >= _ENOUGH_SECONDS or tokens == before:  # twice as many are no more
            return tokens
        asked, before = 2 * asked, tokens
