"""Items to chats: what surrounds a question, how often each task comes, and what is held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from ossia.text import Effort
from ossia.tools import BUILT_IN
from recipes.stdlib.dialogues import arithmetic, calls, library, strings, talk
from recipes.stdlib.dialogues.item import Item

Task = Callable[[Random], Item]

# How often each task occurs in training, and how often the tools of `ossia chat` are available
# although the question does not need them.
_GROUPS: tuple[tuple[tuple[Task, ...], float, float], ...] = (
    (arithmetic.TASKS, 0.34, 0.0),  # if `calculate` is available, the model calls it
    (strings.TASKS, 0.30, 0.2),
    (library.TASKS, 0.22, 0.0),
    (calls.TASKS, 0.08, 0.0),
    (talk.TASKS, 0.06, 0.5),
)
# There is less to learn without an analysis.
_EFFORTS = {Effort.LOW: 1, Effort.MEDIUM: 2, Effort.HIGH: 2}
_WITHOUT_TOOLS: tuple[Task, ...] = (*strings.TASKS, *talk.TASKS)  # whatever tools are available
_MOST_DRAWS = 10_000

_BUILT_IN = {tool.name: tool.schema() for tool in BUILT_IN}
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
    weights = [weight for _, weight, _ in _GROUPS]
    for _ in range(count):
        (tasks, _, offered), *_ = random.choices(_GROUPS, weights)
        item = _drawn(random.choice(tasks), random, is_held_out=False)
        earlier = None
        if random.random() < 0.1:
            earlier = _drawn(random.choice(_WITHOUT_TOOLS), random, is_held_out=False)
        [effort] = random.choices(list(_EFFORTS), list(_EFFORTS.values()))
        yield _dialogue(item, effort, random, offered, earlier)


def held_out(seed: int, count: int) -> Iterator[Dialogue]:
    """`count` questions of each task, never trained on, each at every effort."""
    for tasks, _, offered in _GROUPS:
        for task in dict.fromkeys(tasks):
            random = Random(f"{seed} {task.__name__}")
            for _ in range(count):
                item = _drawn(task, random, is_held_out=True)
                state = random.getstate()
                for effort in Effort:
                    random.setstate(state)  # they differ in nothing else
                    yield _dialogue(item, effort, random, offered, None)


def _drawn(task: Task, random: Random, is_held_out: bool) -> Item:
    for _ in range(_MOST_DRAWS):
        if (item := task(random)).is_held_out == is_held_out:
            return item
    raise AssertionError(f"{task.__name__} has nothing {'' if is_held_out else 'not '}held out")


def _dialogue(
    item: Item, effort: Effort, random: Random, offered: float, earlier: Item | None
) -> Dialogue:
    tools = list(item.tools)
    names = {tool["function"]["name"] for tool in tools}
    if (names and names <= _BUILT_IN.keys() and random.random() < 0.7) or (
        not names and random.random() < offered
    ):
        tools = list(_BUILT_IN.values())
    messages: list[dict[str, Any]] = []
    if random.random() < 0.1:
        messages.append({"role": "system", "content": random.choice(_INSTRUCTIONS)})
    for one in (earlier, item):
        if one is not None:
            messages.append({"role": "user", "content": _question(one, random)})
            messages += _reply(one, effort)
    date = f"20{random.randint(24, 35)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"
    return Dialogue(item.task, effort.value, date, tools, messages)


def _question(item: Item, random: Random) -> str:
    """People are not always careful."""
    question = random.choice(item.questions)
    if random.random() < 0.1:
        question = question.rstrip(".?!")
    if random.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


def _reply(item: Item, effort: Effort) -> Iterator[dict[str, Any]]:
    thought: dict[str, Any] = {}
    if item.thoughts[effort]:
        thought["reasoning"] = item.thoughts[effort]
    for number, call in enumerate(item.calls):
        function = {"name": call.tool, "arguments": json.dumps({call.parameter: call.value})}
        id = f"call_{number}"
        calls = [{"id": id, "type": "function", "function": function}]
        yield {"role": "assistant", **thought, "content": "", "tool_calls": calls}
        yield {"role": "tool", "tool_call_id": id, "content": call.result}
        thought = {}
    yield {"role": "assistant", **thought, "content": item.answer}
