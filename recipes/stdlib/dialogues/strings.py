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
from recipes.stdlib.dialogues.everyday import EVERYDAY
from recipes.stdlib.dialogues.item import Item, withheld

_SHORTEST, _LONGEST = 3, 12  # letters
_ORDINALS = (
    *("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth"),
)
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def reverse(random: Random) -> Item:
    word = _word(random)
    backwards = word[::-1]
    numbered = [f"{n} {letter}" for n, letter in enumerate(word, 1)]
    return _item(
        "reverse",
        word,
        lambda word: (
            f"Reverse the word {word}.",
            f"Reverse {word}.",
            f"Reverse the letters of {word}.",
            f"Write {word} backwards.",
            f"Spell {word} backwards.",
            f"What is {word} reversed?",
            f"What is {word} backwards?",
            f"{word} backwards",
            f"Can you reverse {word}?",
        ),
        f"Letters: {', '.join(numbered)}. Reversed: {', '.join(reversed(numbered))}.",
        f"Letters: {', '.join(numbered)}.\nReversed: {', '.join(reversed(numbered))}.\n"
        f"Together: {' '.join(backwards)}.",
        f"The reverse of {word} is {backwards}.",
    )


def count(random: Random) -> Item:
    word = _word(random)
    letter = random.choice(word if random.random() < 0.85 else _CONSONANTS)
    seen, running, marked = 0, [], []
    for one in word:
        seen += one == letter
        running.append(f"{one} {seen if one == letter else 'no'}")
        marked.append(f"{one} {seen}" if one == letter else one)
    return _item(
        "count",
        word,
        lambda word: (
            f"How many times does the letter {letter} appear in {word}?",
            f"How many times does {letter} appear in {word}?",
            f"How many {letter}'s are in {word}?",
            f"How many {letter}'s are there in {word}?",
            f"How many {letter}'s in {word}?",
            f"How many {letter}s are in {word}?",
            f"How many {letter}s in {word}?",
            f"How many {letter} are in {word}?",
            f"How many {letter} in {word}?",
            f"How many {letter} in the word {word}?",
            f"How many times is {letter} in {word}?",
            f"How often does {letter} occur in {word}?",
            f"Count the letter {letter} in {word}.",
            f"Count the {letter}'s in {word}.",
            f"Number of {letter} in {word}?",
        ),
        f"Letters: {', '.join(marked)}.",
        f"Letters: {', '.join(running)}.",
        f"The letter {letter} appears {seen} time{'' if seen == 1 else 's'} in {word}.",
    )


def length(random: Random) -> Item:
    word = _word(random)
    return _item(
        "length",
        word,
        lambda word: (
            f"How many letters does {word} have?",
            f"How many letters are in {word}?",
            f"How many letters are in the word {word}?",
            f"How many letters are there in {word}?",
            f"How many letters in {word}?",
            f"How long is the word {word}?",
            f"How long is {word}?",
            f"Count the letters in {word}.",
            f"Count the letters of {word}.",
            f"What is the length of {word}?",
            f"Length of {word}?",
        ),
        _in_fives(word),
        _numbered(word),
        f"The word {word} has {len(word)} letters.",
    )


def letter(random: Random) -> Item:
    word = _word(random)
    place = random.randint(1, len(word))
    names = [
        f"letter {place}",
        f"the {_ORDINALS[place]} letter",
        f"the {place}{_suffix(place)} letter",
    ]
    name = names[0]
    if place in (1, len(word)) and random.random() < 0.7:
        name = "the first letter" if place == 1 else "the last letter"
        names = [name]
    numbered = [f"{n} {one}" for n, one in enumerate(word, 1)]
    return _item(
        "letter",
        word,
        lambda word: tuple(
            way.format(one, word)
            for one in names
            for way in (
                "What is {} of {}?",
                "What's {} of {}?",
                "Tell me {} of {}.",
                "What is {} of the word {}?",
                "What is {} in {}?",
                "Which is {} of {}?",
                "{} of {}",
            )
        ),
        _spelt(word) if name == "the last letter" else f"Letters: {', '.join(numbered[:place])}.",
        f"Letters: {', '.join(numbered)}.",
        f"{name[0].upper()}{name[1:]} of {word} is {word[place - 1]}.",
    )


def spelling(random: Random) -> Item:
    word = _word(random)
    return _item(
        "spelling",
        word,
        lambda word: (
            f"Spell {word}.",
            f"Spell the word {word}.",
            f"How do you spell {word}?",
            f"How is {word} spelled?",
            f"Spell {word} letter by letter.",
            f"Can you spell {word}?",
        ),
        _spelt(word),
        f"Letters: {', '.join(f'{n} {one}' for n, one in enumerate(word, 1))}.",
        "-".join(word),
    )


def uppercase(random: Random) -> Item:
    word = _word(random)
    pairs = [f"{one} {one.upper()}" for one in word]
    return _item(
        "uppercase",
        word,
        lambda word: (
            f"Write {word} in uppercase.",
            f"What is {word} in uppercase?",
            f"Write the word {word} in uppercase.",
            f"Write {word} in capital letters.",
            f"Write {word} in upper case.",
            f"Put {word} in uppercase.",
            f"Convert {word} to uppercase.",
            f"Uppercase {word}.",
            f"{word} in uppercase",
            f"Make {word} uppercase.",
        ),
        _spelt(word),
        f"Letters: {', '.join(pairs)}.\nTogether: {' '.join(word.upper())}.",
        f"In uppercase {word} is {word.upper()}.",
    )


def _item(
    task: str,
    word: str,
    questions: Callable[[str], tuple[str, ...]],
    medium: str,
    high: str,
    answer: str,
) -> Item:
    quoted = (*questions(f'"{word}"')[:4], *questions(f"'{word}'")[:2])
    thoughts = {Effort.LOW: "", Effort.MEDIUM: medium, Effort.HIGH: high}
    # A word is held out of one task only. Many words are single tokens, so a model can spell them
    # only if some other task showed it how.
    return Item(
        task,
        withheld(f"{task} {word}"),
        (*questions(word), *quoted),
        thoughts,
        answer,
        about=word if task not in ("count", "letter") else "",
    )


def _spelt(word: str) -> str:
    return f"Letters: {' '.join(word)}."


def _numbered(word: str) -> str:
    return f"Letters: {', '.join(f'{n} {one}' for n, one in enumerate(word, 1))}."


def _in_fives(word: str) -> str:
    """The letters, with a count after every fifth and the last."""
    parts = []
    for n, one in enumerate(word, 1):
        parts.append(one)
        if n % 5 == 0 or n == len(word):
            parts.append(str(n))
    return f"Letters: {' '.join(parts)}."


def _suffix(place: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(place, "th")


def _word(random: Random) -> str:
    """A word that people use, one of the language reference, halves of two, or syllables."""
    kind = random.random()
    if kind < 0.3:
        return random.choice(EVERYDAY)
    if kind < 0.55:
        return random.choice(_words())
    if kind < 0.8:
        begins, ends = (random.choice(random.choice((EVERYDAY, _words()))) for _ in range(2))
        made = begins[: random.randint(2, 6)] + ends[-random.randint(2, 6) :]
        return made[:_LONGEST]
    made = "".join(
        random.choice(_CONSONANTS) * random.choice((1, 1, 2))
        + random.choice(_VOWELS)
        + random.choice(("", "", "n", "r", "t"))
        for _ in range(random.randint(2, 4))
    )
    return made[:_LONGEST]


@cache
def _words() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    found = Counter(word for text in topics.values() for word in re.findall(r"\b[a-z]+\b", text))
    return tuple(sorted(w for w, n in found.items() if n > 1 and _SHORTEST <= len(w) <= _LONGEST))


TASKS: tuple[Callable[[Random], Item], ...] = (
    reverse,
    count,
    length,
    letter,
    spelling,
    uppercase,
)
