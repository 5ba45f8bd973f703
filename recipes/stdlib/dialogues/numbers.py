"""Numbers as people write them: of every length, and often with a digit that repeats.

A model copies a number digit by digit. In 8888888 the digits alone do not say how many are left, so
such numbers are frequent here.
"""

from __future__ import annotations

from random import Random


def whole(random: Random, most: int) -> int:
    """A number of up to `most` digits, each length as likely."""
    count = random.randint(1, most)
    if random.random() < 0.25:
        return int(_repetitive(random, count))
    return random.randint(0 if count == 1 else 10 ** (count - 1), 10**count - 1)


def digits(random: Random, least: int, most: int) -> str:
    """Digits, not beginning with zero."""
    count = random.randint(least, most)
    if random.random() < 0.4:
        return _repetitive(random, count)
    return str(random.randint(10 ** (count - 1), 10**count - 1))


def _repetitive(random: Random, count: int) -> str:
    """Runs of one digit, of any length."""
    text = ""
    while len(text) < count:
        digit = random.choice("123456789" if not text else "0123456789")
        text += digit * random.randint(1, count)
    return text[:count]


def order(numbers: list[int]) -> str:
    """As a list in a sentence."""
    return ", ".join(map(str, numbers))
