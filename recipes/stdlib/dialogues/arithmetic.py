"""Sums worked from the right, as on paper; comparing and sorting.

The longer the analysis, the less is left to do in one step: at low effort the whole result, at
medium effort a digit and its carry, at high effort one sum, product or comparison of digits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from random import Random

from ossia.text import Effort
from recipes.stdlib.dialogues.item import Item, withheld
from recipes.stdlib.dialogues.numbers import order, whole

_LARGER = (
    "Which number is larger, {a} or {b}?",
    "Which is larger, {a} or {b}?",
    "Which is bigger, {a} or {b}?",
    "Which one is bigger: {a} or {b}?",
    "Which is greater, {a} or {b}?",
    "What is larger, {a} or {b}?",
    "What is more, {a} or {b}?",
    "Is {a} larger than {b}?",
    "Is {a} bigger than {b}?",
    "Is {a} more than {b}?",
    "Compare {a} and {b}.",
    "Compare {a} and {b}: which is larger?",
    "{a} or {b}?",
    "{a} or {b}",
    "{a} or {b}, which is larger?",
    "{a} vs {b}",
    "The larger of {a} and {b}?",
)
_SMALLER = (
    "Which number is smaller, {a} or {b}?",
    "Which is smaller, {a} or {b}?",
    "What is smaller, {a} or {b}?",
    "Which is less, {a} or {b}?",
    "Is {a} smaller than {b}?",
    "Is {a} less than {b}?",
    "{a} or {b}, which is smaller?",
)


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
        (
            f"What is {a} plus {b}?",
            f"{a} plus {b}",
            f"Add {a} and {b}.",
            f"What is the sum of {a} and {b}?",
        ),
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
        (f"What is {a} minus {b}?", f"{a} minus {b}", f"Subtract {b} from {a}."),
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
        (
            f"What is {a} times {b}?",
            f"{a} times {b}",
            f"Multiply {a} by {b}.",
            f"What is {a} x {b}?",
        ),
    )


def comparison(random: Random) -> Item:
    """The larger of two numbers, or the smaller."""
    a, b = _decimals(random) if random.random() < 0.15 else _whole_pair(random)
    wants_larger = random.random() < 0.75
    low, high = sorted((a, b), key=float)
    word = "larger" if wants_larger else "smaller"
    ways = _LARGER if wants_larger else _SMALLER
    spelt = [f"{n} has {len(n)} digits: {_spaced(n)}." for n in (a, b) if "." not in n]
    medium = _difference(a, b)
    return Item(
        "comparison",
        withheld(f"comparison {low} {high}"),
        tuple(way.format(a=a, b=b) for way in ways),
        {Effort.LOW: "", Effort.MEDIUM: medium, Effort.HIGH: "\n".join([*spelt, medium])},
        f"The {word} number is {high if wants_larger else low}.",
    )


def _difference(a: str, b: str) -> str:
    """Where two numbers differ: in length, or in their first different digit."""
    if "." in a:
        places = max(len(n.partition(".")[2]) for n in (a, b))
        a, b = (f"{n}{'0' * (places - len(n.partition('.')[2]))}" for n in (a, b))
    elif len(a) != len(b):
        return f"{len(a)} digits and {len(b)} digits: {len(a)}{_sign(len(a), len(b))}{len(b)}."
    pairs = list(zip(a, b, strict=True))
    first = next(n for n, (x, y) in enumerate(pairs) if x != y)
    padded = f"{a} and {b}: " if "." in a else ""
    same = [f"{x}={y}" for x, y in pairs[:first] if x != "."]
    x, y = pairs[first]
    return f"{padded}{', '.join([*same, f'{x}{_sign(int(x), int(y))}{y}'])}."


def _sign(x: int, y: int) -> str:
    return ">" if x > y else "<"


def sorting(random: Random) -> Item:
    """Three to six numbers: the smallest of those that are left, again and again."""
    numbers = _unsorted(random)
    ordered = sorted(numbers)
    lengths = sorted({len(str(number)) for number in numbers})
    high = []
    for length in lengths:
        alike = [number for number in numbers if len(str(number)) == length]
        name = f"{length} digit{'' if length == 1 else 's'}"
        high += [f"{name}: {order(alike)}.", *_selections(alike)]
    return Item(
        "sorting",
        withheld(f"sorting {order(ordered)}"),
        _ways_to_sort(numbers),
        {
            Effort.LOW: "",
            Effort.MEDIUM: "\n".join(_selections(numbers)),
            Effort.HIGH: "\n".join(high),
        },
        f"In order: {order(ordered)}.",
        about=order(numbers),
    )


def _unsorted(random: Random) -> list[int]:
    count = random.choice((3, 3, 4, 4, 4, 5, 5, 6))
    [most] = random.choices((10, 100, 1000), (3, 5, 1))
    numbers = random.sample(range(most), count)
    if random.random() < 0.4:  # of several lengths
        numbers = list({whole(random, 3) for _ in range(count)} | set(numbers[:2]))[:6]
        random.shuffle(numbers)
    return numbers


def _ways_to_sort(numbers: list[int]) -> tuple[str, ...]:
    listed, spaced = order(numbers), " ".join(map(str, numbers))
    *most, last = numbers
    joined = f"{order(most)} and {last}"
    return (
        f"Sort {listed}.",
        f"Sort {listed}",
        f"sort {listed}",
        f"Sort {joined}.",
        f"Sort {spaced}.",
        f"Sort {','.join(map(str, numbers))}.",
        f"Sort these numbers: {listed}",
        f"Sort the numbers {listed}.",
        f"Put {listed} in order.",
        f"Order {listed}.",
        f"Sort the list [{listed}].",
        f"Can you sort {listed}?",
    )


def _selections(numbers: list[int]) -> list[str]:
    """Lines that each take the smallest number out of those that are left."""
    lines, left = [], list(numbers)
    while len(left) > 1:
        lines.append(f"{order(left)}: {min(left)}.")
        left.remove(min(left))
    return [*lines, f"{left[0]}."] if lines else []


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
        withheld(f"{task} {low} {high}"),
        (
            *asked(f"{a} {sign} {b}"),
            *in_words,
        ),
        {
            Effort.LOW: "",
            Effort.MEDIUM: f"{', '.join(short)}.",
            Effort.HIGH: "\n".join([first, *long, last]),
        },
        f"{a} {sign} {b} = {result}.",
        about=f"{a} {sign} {b}",
    )


def asked(expression: str) -> tuple[str, ...]:
    """Ways to ask for the value of an expression."""
    return (
        f"What is {expression}?",
        f"What's {expression}?",
        f"Calculate {expression}.",
        f"Compute {expression}.",
        f"{expression} = ?",
        f"{expression} =",
        expression,
        expression.replace(" ", ""),
        f"What is {expression.replace(' ', '')}?",
        f"How much is {expression}?",
    )


def _number(random: Random) -> int:
    """All lengths are as likely."""
    digits = random.choice((1, 2, 2, 3, 3, 3))
    return random.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _whole_pair(random: Random) -> tuple[str, str]:
    """Two numbers, often of the same length and beginning, so that it takes a look, or a few apart
    with a digit more, such as 99 and 101.
    """
    if random.random() < 0.15:
        power = 10 ** random.randint(1, 4)
        pair = [str(power - random.randint(1, 9)), str(power + random.randint(0, 20))]
        random.shuffle(pair)
        return pair[0], pair[1]
    a = str(whole(random, 5))
    while True:
        kept = random.randrange(len(a))
        tail = "".join(random.choice("0123456789") for _ in a[kept:])
        near = str(int(a[:kept] + tail))
        step = str(max(0, int(a) + random.randint(-9, 9)))
        b = random.choice((near, near, step, str(whole(random, 5))))
        if a != b:
            return a, b


def _decimals(random: Random) -> tuple[str, str]:
    """Such as 9.11 and 9.9."""
    whole_part = random.randint(0, 20)
    while True:
        other = whole_part if random.random() < 0.8 else random.randint(0, 20)
        a, b = (f"{n}.{random.randint(1, 99)}" for n in (whole_part, other))
        if float(a) != float(b) and len(str(whole_part)) == len(str(other)):
            return a, b


def _digits(number: int) -> list[int]:
    """From the right."""
    return [int(digit) for digit in reversed(str(number))]


def _reversed(number: int) -> str:
    return " ".join(reversed(str(number)))


def _spaced(number: str) -> str:
    return " ".join(number)


TASKS: tuple[Callable[[Random], Item], ...] = (
    addition,
    subtraction,
    multiplication,
    comparison,
    sorting,
)
