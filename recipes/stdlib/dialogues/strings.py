"""Letters of words: a model that reads tokens has to learn how each is spelt.

At medium effort the analysis spells the word, at high effort it also counts or pairs the letters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

from ossia.text import Effort
from recipes.stdlib.dialogues.item import Item, chosen_by_hash

_SHORTEST, _LONGEST = 3, 8  # letters
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def reverse(random: Random) -> Item:
    word = _word(random)
    backwards = word[::-1]
    numbered = [f"{n} {letter}" for n, letter in enumerate(word, 1)]
    return _item(
        "reverse",
        word,
        (f"Reverse the word {word}.", f"Reverse {word}.", f"Write {word} backwards."),
        f"{_spelt(word)} Reversed: {' '.join(backwards)}.",
        f"Letters: {', '.join(numbered)}.\nReversed: {', '.join(reversed(numbered))}.\n"
        f"Together: {' '.join(backwards)}.",
        f"The reverse of {word} is {backwards}.",
    )


def count(random: Random) -> Item:
    word = _word(random)
    letter = random.choice(word if random.random() < 0.85 else _CONSONANTS)
    seen, running = 0, []
    for one in word:
        seen += one == letter
        running.append(f"{one} {seen if one == letter else 'no'}")
    return _item(
        "count",
        word,
        (
            f"How many times does the letter {letter} appear in {word}?",
            f"How many times does {letter} appear in {word}?",
            f"How many {letter}'s are in {word}?",
            f"Count the letter {letter} in {word}.",
        ),
        _spelt(word),
        f"Letters: {', '.join(running)}.",
        f"The letter {letter} appears {seen} time{'' if seen == 1 else 's'} in {word}.",
    )


def length(random: Random) -> Item:
    word = _word(random)
    return _item(
        "length",
        word,
        (
            f"How many letters does {word} have?",
            f"How many letters are in {word}?",
            f"How long is the word {word}?",
        ),
        _spelt(word),
        _numbered(word),
        f"The word {word} has {len(word)} letters.",
    )


def letter(random: Random) -> Item:
    word = _word(random)
    place = random.randint(1, len(word))
    name = f"letter {place}"
    if place in (1, len(word)) and random.random() < 0.7:
        name = "the first letter" if place == 1 else "the last letter"
    return _item(
        "letter",
        word,
        (
            f"What is {name} of {word}?",
            f"Tell me {name} of {word}.",
            f"What is {name} of the word {word}?",
        ),
        _spelt(word),
        _numbered(word),
        f"{name[0].upper()}{name[1:]} of {word} is {word[place - 1]}.",
    )


def uppercase(random: Random) -> Item:
    word = _word(random)
    pairs = [f"{one} {one.upper()}" for one in word]
    return _item(
        "uppercase",
        word,
        (
            f"Write {word} in uppercase.",
            f"What is {word} in uppercase?",
            f"Write the word {word} in uppercase.",
        ),
        _spelt(word),
        f"Letters: {', '.join(pairs)}.\nTogether: {' '.join(word.upper())}.",
        f"In uppercase {word} is {word.upper()}.",
    )


def _item(
    task: str,
    word: str,
    questions: tuple[str, ...],
    medium: str,
    high: str,
    answer: str,
) -> Item:
    quoted = tuple(question.replace(word, f'"{word}"') for question in questions[:1])
    thoughts = {Effort.LOW: "", Effort.MEDIUM: medium, Effort.HIGH: high}
    # A word is held out of one task only. Many words are single tokens, so a model can spell them
    # only if some other task showed it how.
    return Item(task, chosen_by_hash(f"{task} {word}"), (*questions, *quoted), thoughts, answer)


def _spelt(word: str) -> str:
    return f"Letters: {' '.join(word)}."


def _numbered(word: str) -> str:
    return f"Letters: {', '.join(f'{n} {one}' for n, one in enumerate(word, 1))}."


def _word(random: Random) -> str:
    """A word of the language reference, or one made of syllables."""
    if random.random() < 0.7:
        return random.choice(_words())
    made = "".join(
        random.choice(_CONSONANTS) + random.choice(_VOWELS) + random.choice(("", "", "n", "r", "t"))
        for _ in range(random.randint(2, 3))
    )
    return made[:_LONGEST]


@cache
def _words() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    found = Counter(word for text in topics.values() for word in re.findall(r"\b[a-z]+\b", text))
    return tuple(sorted(w for w, n in found.items() if n > 1 and _SHORTEST <= len(w) <= _LONGEST))


TASKS: tuple[Callable[[Random], Item], ...] = (reverse, count, length, letter, uppercase)
