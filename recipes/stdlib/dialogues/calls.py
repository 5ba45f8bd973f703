"""Calls of tools whose results make the answer: arithmetic beyond what the model can do itself, and
tools it sees for the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from ossia.errors import OssiaError
from ossia.text import Effort
from ossia.tools import BUILT_IN, Tool
from ossia.tools.calculate import calculate
from recipes.stdlib.dialogues.item import Call, Item, chosen_by_hash

_CALCULATE = next(tool for tool in BUILT_IN if tool.name == "calculate")

# The user's own tools: questions for them, and their results.
_VALUES = {
    "city": """
        Paris London Berlin Rome Madrid Vienna Oslo Lisbon Athens Dublin Prague Warsaw Tokyo Delhi
        Cairo Lima Boston Chicago Sydney Nairobi Lagos Seoul Hanoi Quito""",
    "item": """
        apples bread milk tea coffee rice sugar butter cheese paper books shoes lamps chairs tables
        bikes boats clocks""",
    "person": "Anna Ben Carl Dora Emil Frank Greta Hans Ida Jonas Karin Lars Maria Nils Olga",
}
_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snow")
_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October", "December")
_OWN_TOOLS: tuple[tuple[str, str, str, Callable[[Random], str]], ...] = (
    ("weather", "city", "city", lambda r: f"{r.choice(_SKIES)}, {r.randint(1, 35)} degrees"),
    ("time", "city", "city", lambda r: f"{r.randint(0, 23)}:{r.randint(10, 59)}"),
    ("population", "city", "city", lambda r: str(r.randint(1000, 9_999_999))),
    ("temperature", "place", "city", lambda r: f"{r.randint(1, 35)} degrees"),
    ("distance", "place", "city", lambda r: f"{r.randint(10, 9999)} km"),
    ("price", "item", "item", lambda r: f"{r.randint(1, 99)}.{r.randint(10, 99)}"),
    ("stock", "item", "item", lambda r: str(r.randint(0, 500))),
    ("weight", "item", "item", lambda r: f"{r.randint(1, 900)} g"),
    ("phone", "person", "person", lambda r: f"{r.randint(100, 999)} {r.randint(1000, 9999)}"),
    ("age", "person", "person", lambda r: str(r.randint(1, 99))),
    ("birthday", "person", "person", lambda r: f"{r.randint(1, 28)} {r.choice(_MONTHS)}"),
    ("office", "name", "person", lambda r: f"room {r.randint(100, 999)}"),
)


def calculated(random: Random) -> Item:
    """One expression."""
    expression = _expression(random)
    answer, result = _evaluated(expression)
    return Item(
        "calculated",
        chosen_by_hash(expression),
        _questions(expression),
        _thoughts(expression, _CALCULATE.name),
        answer,
        (_call(expression, result),),
        (_CALCULATE.schema(),),
    )


def calculated_twice(random: Random) -> Item:
    """Two, one call after the other."""
    expressions = [_expression(random), _expression(random)]
    joined = " and ".join(expressions)
    evaluated = [_evaluated(expression) for expression in expressions]
    return Item(
        "calculated_twice",
        any(map(chosen_by_hash, expressions)),
        (f"What are {joined}?", f"Calculate {joined}.", f"How much are {joined}?"),
        _thoughts(joined, _CALCULATE.name),
        "\n".join(answer for answer, _ in evaluated),
        tuple(_call(e, r) for e, (_, r) in zip(expressions, evaluated, strict=True)),
        (_CALCULATE.schema(),),
    )


def own_tool(random: Random) -> Item:
    """A tool of the user's, among others that do not fit."""
    (name, parameter, kind, draw), *others = random.sample(_OWN_TOOLS, random.randint(1, 2))
    value = random.choice(_VALUES[kind].split())
    tools = [_own(name, parameter), *(_own(*other[:2]) for other in others)]
    random.shuffle(tools)
    result = draw(random)
    return Item(
        "own_tool",
        chosen_by_hash(f"{name} {value}"),
        (
            f"What is the {name} of {value}?",
            f"Tell me the {name} of {value}.",
            f"Look up the {name} of {value}.",
        ),
        _thoughts(f"the {name} of {value}", name),
        f"The {name} of {value} is {result}.",
        (Call(name, parameter, value, result),),
        tuple(tools),
    )


def _own(name: str, parameter: str) -> dict[str, Any]:
    return Tool(name, f"Returns the {name} of a {parameter}.", parameter, str).schema()


def _thoughts(what: str, tool: str) -> dict[Effort, str]:
    return {
        Effort.LOW: "",
        Effort.MEDIUM: f"I use the tool {tool}.",
        Effort.HIGH: f"The user asks for {what}. The tool {tool} returns it, so I call the tool.",
    }


def _questions(expression: str) -> tuple[str, ...]:
    words = expression
    for sign, word in (("+", "plus"), ("-", "minus"), ("*", "times")):
        words = words.replace(f" {sign} ", f" {word} ")
    return (
        f"What is {expression}?",
        f"Calculate {expression}.",
        f"{expression} = ?",
        f"How much is {expression}?",
        f"What is {words}?" if "(" not in expression and "/" not in expression else expression,
    )


def _expression(random: Random) -> str:
    a, b, c = (_number(random) for _ in range(3))
    one, other = random.choices("+-*/", (3, 3, 3, 1), k=2)
    if random.random() < 0.75:
        return f"{a} {one} {b}"
    if random.random() < 0.5:
        return f"{a} {one} {b} {other} {c}"
    return f"({a} {one} {b}) {other} {c}"


def _number(random: Random) -> int:
    digits = random.randint(1, 5)
    return random.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _evaluated(expression: str) -> tuple[str, str]:
    """The answer's sentence, and what the tool returns."""
    try:
        result = calculate(expression)
    except OssiaError as error:
        return f"{expression} has no result: {error}.", f"error: {error}"
    return f"{expression} = {result}.", result


def _call(expression: str, result: str) -> Call:
    return Call(_CALCULATE.name, _CALCULATE.parameter, expression, result)


TASKS: tuple[Callable[[Random], Item], ...] = (calculated, calculated_twice, own_tool)
