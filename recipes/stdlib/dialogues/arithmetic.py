"""Sums worked from the right, as on paper; comparing and sorting.

The longer the analysis, the less is left to do in one step: at low effort the whole result, at
medium effort a digit and its carry, at high effort one sum, product or comparison of digits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from random import Random

from ossia.text import Effort
from recipes.stdlib.dialogues.item import Item, chosen_by_hash

_DIGITS = 3  # at most, of the numbers to add


def addition(random: Random) -> Item:
    a, b = _number(random), _number(random)
    lines, sums, carry = [], [], 0
    for x, y in zip_longest(_digits(a), _digits(b), fillvalue=0):
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total}, write {total % 10}, carry {total // 10}.")
        sums.append(f"{x}+{y}+{carry}={total}" if carry else f"{x}+{y}={total}")
        carry = total // 10
    if carry:
        lines.append("Write 1.")
    return _worked(
        "addition",
        a,
        "+",
        b,
        a + b,
        sums,
        lines,
        (f"What is {a} plus {b}?", f"Add {a} and {b}.", f"What is the sum of {a} and {b}?"),
    )


def subtraction(random: Random) -> Item:
    b, a = sorted((_number(random), _number(random)))
    lines, differences, borrow = [], [], 0
    for x, y in zip_longest(_digits(a), _digits(b), fillvalue=0):
        left = x - y - borrow
        lent = 10 if left < 0 else 0
        taken = f"-{borrow}" if borrow else ""
        away = y + borrow
        lines.append(
            f"{y}+{borrow}={away}, {x}{'<' if lent else '>='}{away}, "
            f"{x + lent}-{away}={left + lent}, write {left + lent}, borrow {lent // 10}."
        )
        differences.append(f"{x + lent}-{y}{taken}={left + lent}")
        borrow = lent // 10
    return _worked(
        "subtraction",
        a,
        "-",
        b,
        a - b,
        differences,
        lines,
        (f"What is {a} minus {b}?", f"Subtract {b} from {a}."),
    )


def multiplication(random: Random) -> Item:
    a, b = random.randint(11, 99), random.randint(2, 9)
    if random.random() < 0.2:
        a = random.randint(2, 9)
    lines, products, carry = [], [], 0
    for x in _digits(a):
        total = x * b + carry
        lines.append(
            f"{x}*{b}={x * b}, {x * b}+{carry}={total}, write {total % 10}, carry {total // 10}."
        )
        products.append(f"{x}*{b}+{carry}={total}" if carry else f"{x}*{b}={total}")
        carry = total // 10
    if carry:
        lines.append(f"Write {carry}.")
    return _worked(
        "multiplication",
        a,
        "*",
        b,
        a * b,
        products,
        lines,
        (f"What is {a} times {b}?", f"Multiply {a} by {b}.", f"What is {a} x {b}?"),
    )


def comparison(random: Random) -> Item:
    a = random.randint(10, 9999)
    b = _neighbour(a, random)
    larger = max(a, b)
    spelt = [f"{n} has {len(str(n))} digits: {_spaced(n)}." for n in (a, b)]
    if len(str(a)) != len(str(b)):
        x, y = len(str(a)), len(str(b))
        medium = f"{x} digits and {y} digits."
        high = [*spelt, f"{x}{'>' if x > y else '<'}{y} digits."]
    else:
        pairs = list(zip(str(a), str(b), strict=True))
        first = next(n for n, (x, y) in enumerate(pairs) if x != y)
        signs = [f"{x}={y}" for x, y in pairs[:first]]
        x, y = pairs[first]
        signs.append(f"{x}{'>' if x > y else '<'}{y}")
        medium = f"{', '.join(signs)}."
        high = [*spelt, medium]
    return Item(
        "comparison",
        chosen_by_hash(f"comparison {min(a, b)} {larger}"),
        (
            f"Which number is larger, {a} or {b}?",
            f"Which is larger, {a} or {b}?",
            f"Compare {a} and {b}: which is larger?",
        ),
        {Effort.LOW: "", Effort.MEDIUM: medium, Effort.HIGH: "\n".join(high)},
        f"The larger number is {larger}.",
    )


def sorting(random: Random) -> Item:
    numbers = random.sample(range(100), random.randint(3, 5))
    ordered = sorted(numbers)
    tens = [f"{number // 10}" for number in numbers]
    medium = f"Tens: {' '.join(tens)}. In order: {' '.join(sorted(tens))}."
    high = [medium]
    for ten in sorted(set(tens)):
        alike = [number for number in numbers if f"{number // 10}" == ten]
        high.append(f"{ten}: {_list(alike)}. In order: {_list(sorted(alike))}.")
    return Item(
        "sorting",
        chosen_by_hash(f"sorting {_list(ordered)}"),
        (
            f"Sort {_list(numbers)}.",
            f"Sort the numbers {_list(numbers)}.",
            f"Put {_list(numbers)} in order.",
        ),
        {
            Effort.LOW: "",
            Effort.MEDIUM: medium,
            Effort.HIGH: "\n".join(high),
        },
        f"In order: {_list(ordered)}.",
    )


def _worked(
    task: str,
    a: int,
    sign: str,
    b: int,
    result: int,
    short: list[str],
    long: list[str],
    in_words: tuple[str, ...],
) -> Item:
    first = f"From the right: {_reversed(a)} and {_reversed(b)}."
    last = f"From the right {_reversed(result)}: {result}."
    # One key for both orders, because either reveals the other.
    low, high = sorted((a, b))
    return Item(
        task,
        chosen_by_hash(f"{task} {low} {high}"),
        (
            f"What is {a} {sign} {b}?",
            f"Calculate {a} {sign} {b}.",
            f"{a} {sign} {b} = ?",
            *in_words,
        ),
        {
            Effort.LOW: "",
            Effort.MEDIUM: f"{', '.join(short)}.",
            Effort.HIGH: "\n".join([first, *long, last]),
        },
        f"{a} {sign} {b} = {result}.",
    )


def _number(random: Random) -> int:
    """All lengths are as likely."""
    digits = random.choice((1, 2, 2, 3, 3, 3))
    return random.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _neighbour(a: int, random: Random) -> int:
    """Another number, often of the same length and beginning, so that it takes a look."""
    while True:
        text = str(a)
        if random.random() < 0.3:
            other = random.randint(10, 9999)
        else:
            kept = random.randrange(len(text))
            tail = "".join(random.choice("0123456789") for _ in text[kept:])
            other = int((text[:kept] + tail).lstrip("0") or "0")
        if other != a and other >= 10:
            return other


def _digits(number: int) -> list[int]:
    """From the right."""
    return [int(digit) for digit in reversed(str(number))]


def _reversed(number: int) -> str:
    return " ".join(reversed(str(number)))


def _spaced(number: int) -> str:
    return " ".join(str(number))


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


TASKS: tuple[Callable[[Random], Item], ...] = (
    addition,
    subtraction,
    multiplication,
    comparison,
    sorting,
)
