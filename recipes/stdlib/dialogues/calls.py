"""Calls of tools whose results make the answer: arithmetic beyond what the model can do itself, and
tools it sees for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from ossia.errors import OssiaError
from ossia.text import Effort
from ossia.tools import BUILT_IN, Tool
from ossia.tools.calculate import calculate
from recipes.stdlib.dialogues.arithmetic import asked
from recipes.stdlib.dialogues.item import Call, Item, withheld
from recipes.stdlib.dialogues.numbers import digits, whole

_CALCULATE = next(tool for tool in BUILT_IN if tool.name == "calculate")

# The user's own tools: questions for them, and their results.
_VALUES = {
    "city": """
        Paris London Berlin Rome Madrid Vienna Oslo Lisbon Athens Dublin Prague Warsaw Tokyo Delhi
        Cairo Lima Boston Chicago Sydney Nairobi Lagos Seoul Hanoi Quito Bern Zurich Munich Hamburg
        Brussels Amsterdam Stockholm Helsinki Budapest Istanbul Moscow Kiev Toronto Denver Seattle
        Dallas Miami Houston Mumbai Bangkok Manila Jakarta Singapore Dubai Tunis Accra Havana""",
    "item": """
        apples bread milk tea coffee rice sugar butter cheese paper books shoes lamps chairs tables
        bikes boats clocks pens pencils bananas oranges lemons eggs flour salt honey phones laptops
        bags hats coats socks gloves tickets flowers seeds nails screws hammers wood""",
    "person": """
        Anna Ben Carl Dora Emil Frank Greta Hans Ida Jonas Karin Lars Maria Nils Olga Paul Rosa
        Sam Tom Ursula Victor Wanda Alice Bob Charlie David Emma Grace Henry Jack Kate Lucy Mia
        Noah Peter Sarah Simon Sophie Thomas""",
}
_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snow", "clear", "hot", "cold", "storm")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "December"),
)
_CODE = "ABCDEFGHKLMNPRSTUVWXYZ"


def _sky(random: Random) -> str:
    return f"{random.choice(_SKIES)}, {random.randint(1, 35)} degrees"


def _name(random: Random) -> str:
    return " ".join(random.choice(_VALUES["person"].split()) for _ in range(random.randint(1, 2)))


def _code(random: Random) -> str:
    letters = "".join(random.choice(_CODE) for _ in range(random.randint(1, 3)))
    return f"{letters}-{digits(random, 2, 8)}"


_OWN_TOOLS: tuple[tuple[str, str, str, Callable[[Random], str]], ...] = (
    ("weather", "city", "city", _sky),
    ("weather", "location", "city", _sky),
    ("time", "city", "city", lambda r: f"{r.randint(0, 23)}:{r.randint(10, 59)}"),
    ("population", "city", "city", lambda r: digits(r, 3, 9)),
    ("population", "place", "city", lambda r: digits(r, 5, 8)),
    ("mayor", "city", "city", _name),
    ("area", "place", "city", lambda r: f"{digits(r, 2, 6)} square km"),
    ("temperature", "place", "city", lambda r: f"{r.randint(1, 35)} degrees"),
    ("distance", "place", "city", lambda r: f"{digits(r, 2, 5)} km"),
    ("price", "item", "item", lambda r: f"{digits(r, 1, 5)}.{r.randint(10, 99)}"),
    ("price", "product", "item", lambda r: f"{digits(r, 1, 6)} dollars"),
    ("stock", "item", "item", lambda r: digits(r, 1, 6)),
    ("weight", "item", "item", lambda r: f"{digits(r, 1, 4)} g"),
    ("code", "item", "item", _code),
    ("supplier", "product", "item", _name),
    ("phone", "person", "person", lambda r: f"{digits(r, 3, 5)} {digits(r, 4, 8)}"),
    ("number", "name", "person", lambda r: digits(r, 4, 12)),
    ("age", "person", "person", lambda r: str(r.randint(1, 99))),
    ("birthday", "person", "person", lambda r: f"{r.randint(1, 28)} {r.choice(_MONTHS)}"),
    ("office", "name", "person", lambda r: f"room {digits(r, 2, 4)}"),
    ("manager", "name", "person", _name),
    ("balance", "customer", "person", lambda r: f"{digits(r, 1, 7)}.{r.randint(10, 99)}"),
    ("order", "customer", "person", _code),
)
_ASKED = (
    "What is the {} of {}?",
    "What's the {} of {}?",
    "Tell me the {} of {}.",
    "Look up the {} of {}.",
    "Find the {} of {}.",
    "Give me the {} of {}.",
    "The {} of {}?",
)
_ASKED_IN = ("What is the {} in {}?", "{} in {}", "How is the {} in {}?")
_PREFIXES = ("get_", "find_", "look_up_", "fetch_")
_DESCRIPTIONS = (
    "Returns the {} of a {}.",
    "Returns the {} of a {}",
    "Get the {} of a {}.",
    "Get the current {} for a given {}",
    "The {} of a {}.",
    "Look up the {} of a {}.",
)


def calculated(random: Random) -> Item:
    """One expression."""
    expression = _expression(random)
    answer, result = _evaluated(expression)
    return Item(
        "calculated",
        withheld(expression),
        (*asked(expression), *_in_words(expression)),
        _thoughts(expression, _CALCULATE.name),
        answer,
        (_call(expression, result),),
        (_CALCULATE.schema(),),
        expression,
    )


def calculated_twice(random: Random) -> Item:
    """Two, one call after the other."""
    expressions = [_expression(random), _expression(random)]
    joined = " and ".join(expressions)
    evaluated = [_evaluated(expression) for expression in expressions]
    return Item(
        "calculated_twice",
        any(map(withheld, expressions)),
        (f"What are {joined}?", f"Calculate {joined}.", f"How much are {joined}?"),
        _thoughts(joined, _CALCULATE.name),
        "\n".join(answer for answer, _ in evaluated),
        tuple(_call(e, r) for e, (_, r) in zip(expressions, evaluated, strict=True)),
        (_CALCULATE.schema(),),
    )


@dataclass(frozen=True)
class OwnTools:
    """Tools of the user's, each for one topic: its kind of values, how results are drawn, and its
    schema.
    """

    topics: dict[str, tuple[str, Callable[[Random], str], dict[str, Any]]]

    @classmethod
    def drawn(cls, random: Random) -> OwnTools:
        """Two or three, one of whose questions at least is held out."""
        while True:
            topics = {}
            for topic, parameter, kind, draw in random.sample(_OWN_TOOLS, random.randint(2, 3)):
                topics[topic] = kind, draw, _own(topic, parameter, random)
            if any(
                withheld(f"{topic} {value}")
                for topic, (kind, *_) in topics.items()
                for value in _VALUES[kind].split()
            ):
                return cls(topics)

    def question(self, random: Random) -> Item:
        """A question for one of them."""
        topic = random.choice(list(self.topics))
        kind, draw, tool = self.topics[topic]
        value = random.choice(_VALUES[kind].split())
        name, [parameter] = tool["function"]["name"], tool["function"]["parameters"]["properties"]
        result = draw(random)
        returned = result
        if random.random() < 0.15:
            returned = json.dumps({topic: int(result) if result.isdigit() else result})
        ways = _ASKED + _ASKED_IN * (kind == "city")
        return Item(
            "own_tool",
            withheld(f"{topic} {value}"),
            tuple(way.format(topic, value) for way in ways),
            _thoughts(f"the {topic} of {value}", name),
            f"The {topic} of {value} is {result}.",
            (Call(name, parameter, value, returned),),
            tuple(tool for _, _, tool in self.topics.values()),
            value,
            topic,
        )


def own_tool(random: Random) -> Item:
    """A tool of the user's, among others that do not fit."""
    return OwnTools.drawn(random).question(random)


def _own(topic: str, parameter: str, random: Random) -> dict[str, Any]:
    prefix = random.choice(_PREFIXES) if random.random() < 0.35 else ""
    description = random.choice(_DESCRIPTIONS).format(topic, parameter)
    return Tool(f"{prefix}{topic}", description, parameter, str).schema()


def _thoughts(what: str, tool: str) -> dict[Effort, str]:
    return {
        Effort.LOW: "",
        Effort.MEDIUM: f"I use the tool {tool}.",
        Effort.HIGH: f"The user asks for {what}. The tool {tool} returns it, so I call the tool.",
    }


_SIGNS = (
    ("+", ("plus",)),
    ("-", ("minus",)),
    ("*", ("times", "x", "multiplied by")),
    ("/", ("divided by", "over")),
    ("**", ("to the power of", "^")),
    ("%", ("modulo", "mod")),
)


def _in_words(expression: str) -> tuple[str, ...]:
    """Ways to ask for one operation without its sign."""
    if "(" in expression or expression.count(" ") != 2:
        return ()
    a, sign, b = expression.split(" ")
    for written, words in _SIGNS:
        if sign == written:
            said = [f"{a} {word} {b}" for word in words]
            return (*said, *(f"What is {one}?" for one in said), *_verbs(a, sign, b))
    return ()


def _verbs(a: str, sign: str, b: str) -> tuple[str, ...]:
    if sign == "+":
        return f"Add {a} and {b}.", f"What is the sum of {a} and {b}?", f"sum of {a} and {b}"
    if sign == "-":
        return (f"Subtract {b} from {a}.",)
    if sign == "*":
        return f"Multiply {a} by {b}.", f"{a}x{b}", f"What is the product of {a} and {b}?"
    if sign == "/":
        return (f"Divide {a} by {b}.",)
    if (sign, b) == ("**", "2"):
        return f"What is {a} squared?", f"{a} squared", f"What is the square of {a}?"
    if (sign, b) == ("**", "0.5"):
        return f"What is the square root of {a}?", f"square root of {a}", f"sqrt({a})"
    return ()


def _expression(random: Random) -> str:
    draw = random.random()
    if draw < 0.12:
        return _sum_of_a_repeated_digit(random)
    if draw < 0.22:
        return _power(random)
    most = random.choice((2, 2, 3, 5, 8, 12))
    a, b, c = (whole(random, most) for _ in range(3))
    one, other = random.choices("+-*/%", (6, 6, 6, 3, 1), k=2)
    if draw < 0.85:
        return f"{a} {one} {b}"
    if draw < 0.93:
        return f"{a} {one} {b} {other} {c}"
    return f"({a} {one} {b}) {other} {c}"


def _sum_of_a_repeated_digit(random: Random) -> str:
    result = int(random.choice("123456789") * random.randint(2, 10))
    a = random.randint(0, result)
    return f"{a} + {result - a}" if random.random() < 0.6 else f"{result + a} - {a}"


def _power(random: Random) -> str:
    if random.random() < 0.4:
        return f"{random.randint(1, 120)} ** 2"
    if random.random() < 0.5:
        return f"{random.randint(1, 30) ** 2} ** 0.5"
    return f"{random.randint(2, 12)} ** {random.randint(2, 12)}"


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
