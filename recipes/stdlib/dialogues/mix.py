"""Items to chats: which tools there are, which questions come in a row, and what is held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from ossia.text import Effort
from ossia.tools import BUILT_IN
from recipes.stdlib.dialogues import arithmetic, calls, library, strings, talk
from recipes.stdlib.dialogues.calls import OwnTools
from recipes.stdlib.dialogues.item import Item
from recipes.stdlib.first_typed import QUESTIONS

T = TypeVar("T")
Task = Callable[[Random], Item]

# Every task, and how often it occurs.
_TASKS: dict[Task, int] = {
    arithmetic.addition: 7,
    arithmetic.subtraction: 7,
    arithmetic.multiplication: 7,
    arithmetic.comparison: 9,
    arithmetic.sorting: 10,
    strings.reverse: 9,
    strings.count: 8,
    strings.length: 5,
    strings.letter: 7,
    strings.spelling: 7,
    strings.uppercase: 5,
    library.by_heart: 7,
    library.looked_up: 11,
    library.looked_up_twice: 2,
    library.unknown_name: 4,
    calls.calculated: 14,
    calls.calculated_twice: 2,
    calls.own_tool: 45,  # in a seventh of the chats
    talk.small_talk: 11,
    talk.unknown: 7,
    talk.repeated: 4,
}
# Whoever has a tool uses it; without it, the model works a sum out and knows some names by heart.
_WITHOUT: dict[Task, str] = {
    **dict.fromkeys((arithmetic.addition, arithmetic.subtraction), "calculate"),
    arithmetic.multiplication: "calculate",
    library.by_heart: "documentation",
}
_WITH: dict[Task, str] = {
    **dict.fromkeys((calls.calculated, calls.calculated_twice), "calculate"),
    **dict.fromkeys((library.looked_up, library.looked_up_twice), "documentation"),
    library.unknown_name: "documentation",
    calls.own_tool: "own",
}
_BOTH = frozenset({"calculate", "documentation"})
_OFFERED: dict[frozenset[str], int] = {
    _BOTH: 62,  # as in `ossia chat`
    frozenset(): 18,
    frozenset({"calculate"}): 3,
    frozenset({"documentation"}): 3,
    frozenset({"own"}): 9,
    _BOTH | {"own"}: 5,
}
_EFFORTS = {Effort.LOW: 6, Effort.MEDIUM: 9, Effort.HIGH: 5}
_TURNS = {1: 26, 2: 20, 3: 20, 4: 15, 5: 9, 6: 8}
_LONG = 0.04  # of the chats have low effort and many turns, to fill the context
_LONG_TURNS = (10, 18)
POSITIONS = (1, 2, 3, 4, 6)  # in which held-out questions are asked, in turn
_MOST_DRAWS = 10_000

_BUILT_IN = {tool.name: tool.schema() for tool in BUILT_IN}
_AGAIN = ("And {}?", "and {}?", "What about {}?", "And {}", "what about {}?", "Now {}.")
_INSTRUCTIONS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Be brief.",
    "You are a friendly assistant. Answer in English.",
)


@dataclass(frozen=True)
class Dialogue:
    """A chat as a line of JSON: `messages` and `tools` are those of Chat Completions, an assistant
    message may have `reasoning`, `date` is the day it is set on.
    """

    task: str
    reasoning_effort: str
    date: str
    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]

    def line(self) -> str:
        return json.dumps({key: value for key, value in vars(self).items() if value})


def training(seed: int, count: int) -> Iterator[Dialogue]:
    """Chats to learn from; a prefix of a longer one by the same seed."""
    random = Random(seed)
    for _ in range(count):
        [offered] = _weighted(_OFFERED, random)
        [effort], [turns] = _weighted(_EFFORTS, random), _weighted(_TURNS, random)
        if random.random() < _LONG:
            effort, turns = Effort.LOW, random.randint(*_LONG_TURNS)
        items = _items(offered, turns, OwnTools.drawn(random), random)
        yield _dialogue(items, offered, effort, random)


def held_out(seed: int, count: int) -> Iterator[Dialogue]:
    """`count` questions of each task, never trained on, each at every effort. They are asked as the
    first of a chat, or after earlier turns that may occur in training.
    """
    for task in _TASKS:
        random = Random(f"{seed} {task.__name__}")
        for number in range(count):
            [offered] = _weighted({o: w for o, w in _OFFERED.items() if _fits(task, o)}, random)
            own = OwnTools.drawn(random)
            earlier = _items(offered, POSITIONS[number % len(POSITIONS)] - 1, own, random)
            item = _drawn(task, own, random, is_held_out=True)
            state = random.getstate()
            for effort in Effort:
                random.setstate(state)  # they differ in nothing else
                yield _dialogue([*earlier, item], offered, effort, random)


def _items(offered: frozenset[str], count: int, own: OwnTools, random: Random) -> list[Item]:
    """Questions of mixed tasks, some after another of the same task."""
    fitting = {task: weight for task, weight in _TASKS.items() if _fits(task, offered)}
    tasks: list[Task] = []
    for _ in range(count):
        again = tasks and random.random() < 0.12
        tasks += tasks[-1:] if again else _weighted(fitting, random)
    return [_drawn(task, own, random, is_held_out=False) for task in tasks]


def _fits(task: Task, offered: frozenset[str]) -> bool:
    return _WITHOUT.get(task) not in offered and _WITH.get(task, "") in {*offered, ""}


def _weighted(weights: dict[T, int], random: Random) -> list[T]:
    return random.choices(list(weights), list(weights.values()))


def _drawn(task: Task, own: OwnTools, random: Random, is_held_out: bool) -> Item:
    draw = own.question if task is calls.own_tool else task
    for _ in range(_MOST_DRAWS):
        if (item := draw(random)).is_held_out == is_held_out:
            return item
    raise AssertionError(f"{task.__name__} has nothing {'' if is_held_out else 'not '}held out")


def _dialogue(
    items: Sequence[Item], offered: frozenset[str], effort: Effort, random: Random
) -> Dialogue:
    tools = {name: schema for name, schema in _BUILT_IN.items() if name in offered}
    for item in items:
        tools |= {tool["function"]["name"]: tool for tool in item.tools}
    messages: list[dict[str, Any]] = []
    if random.random() < 0.1:
        messages.append({"role": "system", "content": random.choice(_INSTRUCTIONS)})
    calls, last = 0, None
    for item in items:
        messages.append({"role": "user", "content": _question(item, last, random)})
        messages += _reply(item, effort, calls)
        calls += len(item.calls)
        last = item
    date = f"20{random.randint(24, 35)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"
    return Dialogue(items[-1].task, effort.value, date, list(tools.values()), messages)


def _question(item: Item, last: Item | None, random: Random) -> str:
    """As people type it: not always carefully, and sometimes only what is new."""
    while True:
        question = random.choice(item.questions)
        again = last is not None and (last.task, last.topic) == (item.task, item.topic)
        if again and item.about and random.random() < 0.4:
            question = random.choice(_AGAIN).format(item.about)
        if random.random() < 0.2:
            question = question.rstrip(".?! ") or question
        if random.random() < 0.2:
            question = question[0].lower() + question[1:]
        if random.random() < 0.03:
            question = f"Please {question[0].lower()}{question[1:]}"
        if question not in QUESTIONS:
            return question


def _reply(item: Item, effort: Effort, calls: int) -> Iterator[dict[str, Any]]:
    """The messages of a turn; `calls` were made before it."""
    thought: dict[str, Any] = {}
    if item.thoughts[effort]:
        thought["reasoning"] = item.thoughts[effort]
    for number, call in enumerate(item.calls, calls):
        function = {"name": call.tool, "arguments": json.dumps({call.parameter: call.value})}
        id = f"call_{number}"
        called = [{"id": id, "type": "function", "function": function}]
        yield {"role": "assistant", **thought, "content": "", "tool_calls": called}
        yield {"role": "tool", "tool_call_id": id, "content": call.result}
        thought = {}
    yield {"role": "assistant", **thought, "content": item.answer}
