"""Dialogues to learn from: worked right, held out by what is asked, the same for a seed."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from ossia.text import Chat, Effort
from ossia.text.harmony.messages import from_chat
from ossia.text.harmony.render import contents
from ossia.tools import BUILT_IN, call
from ossia.tools.documentation import documentation
from recipes.stdlib import dialogues
from recipes.stdlib.dialogues import arithmetic, calls, library, strings, talk
from recipes.stdlib.dialogues.item import Item, withheld
from recipes.stdlib.dialogues.mix import POSITIONS
from recipes.stdlib.first_typed import FIRST_TYPED

MODULES = (arithmetic, strings, library, calls, talk)
TASKS = list(dict.fromkeys(task for module in MODULES for task in module.TASKS))


def draw(task, count: int = 200) -> list[Item]:
    random = Random(1)
    return [task(random) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_some_of_every_task_is_held_out_and_never_trained_on(task) -> None:
    items = draw(task, 1000)
    assert 0 < sum(item.is_held_out for item in items) < len(items) / 2
    seen: dict[str, bool] = {}
    for item in items:
        for question in item.questions:
            assert seen.setdefault(question, item.is_held_out) == item.is_held_out


def questions(chat: dialogues.Dialogue) -> list[str]:
    return [m["content"] for m in chat.messages if m["role"] == "user"]


def test_the_split_is_by_question() -> None:
    """Of sentences; after a question of the same task a bare name is another question, and so is
    what is looked up with a tool, and known by heart without it.
    """

    def asked(chat: dialogues.Dialogue, some: list[str]) -> set[tuple[str, bool]]:
        looks_up = any(tool["function"]["name"] == "documentation" for tool in chat.tools)
        plain = {question.lower().rstrip(".?! ") for question in some}
        return {(q, looks_up) for q in plain if not q.startswith(("and ", "what about", "now "))}

    held_out = set().union(*(asked(c, questions(c)[-1:]) for c in dialogues.held_out(0, 20)))
    trained = set().union(*(asked(c, questions(c)) for c in dialogues.training(0, 2500)))
    assert len(held_out) > 200
    assert sorted(held_out & trained) == []


def test_what_people_type_first_is_never_trained_on() -> None:
    typed = {one.question for one in FIRST_TYPED}
    keys = {one.key for one in FIRST_TYPED} - {""}
    assert len(typed) == 30
    assert all(withheld(key) for key in keys)
    for chat in dialogues.training(7, 4000):
        assert not typed & set(questions(chat))
        for message in chat.messages:
            for made in message.get("tool_calls", ()):
                [value] = json.loads(made["function"]["arguments"]).values()
                assert not {value, f"name {value}"} & keys


def test_chats_have_one_to_six_questions_and_some_fill_the_context() -> None:
    chats = list(dialogues.training(0, 1500))
    counts = Counter(len(questions(chat)) for chat in chats)
    assert all(counts[n] > 50 for n in range(1, 7))
    assert 0.02 < sum(n > 6 for n in counts.elements()) / len(chats) < 0.07


def test_held_out_questions_are_asked_at_every_position() -> None:
    chats = list(dialogues.held_out(0, len(POSITIONS)))
    positions = Counter((chat.task, len(questions(chat))) for chat in chats)
    assert positions == {(t.__name__, p): 3 for t in TASKS for p in POSITIONS}


def test_a_seed_says_everything_and_a_longer_run_begins_like_a_shorter_one() -> None:
    chats = [chat.line() for chat in dialogues.training(3, 300)]
    assert chats == [chat.line() for chat in islice(dialogues.training(3, 900), 300)]
    assert chats != [chat.line() for chat in dialogues.training(4, 300)]
    held_out = [chat.line() for chat in dialogues.held_out(3, 4)]
    assert held_out == [chat.line() for chat in dialogues.held_out(3, 4)]


def test_efforts_are_asked_the_same_and_think_longer() -> None:
    chats = list(dialogues.held_out(0, 5))
    assert len(chats) == 5 * len(Effort) * len({chat.task for chat in chats})
    for low, medium, high in zip(chats[::3], chats[1::3], chats[2::3], strict=True):
        assert (low.task, low.tools, low.date) == (medium.task, medium.tools, medium.date)
        assert questions(low) == questions(medium) == questions(high)
        thoughts = [
            " ".join(message.get("reasoning", "") for message in chat.messages)
            for chat in (low, medium, high)
        ]
        assert not thoughts[0].strip()
        assert 0 < len(thoughts[1]) <= len(thoughts[2])


def test_sums_are_right_at_every_line() -> None:
    """Everything that looks like an equation is one."""
    tasks = (arithmetic.addition, arithmetic.subtraction, arithmetic.multiplication)
    for item in (item for task in tasks for item in draw(task)):
        texts = [item.answer, *item.thoughts.values()]
        equations = re.findall(r"(?<![\w*+-])([\d ]+(?:[-+*] ?\d+ ?)+)= ?(\d+)", " ".join(texts))
        assert len(equations) >= 2
        for left, right in equations:
            assert eval(re.sub(r"\b0+(?=\d)", "", left)) == int(right), (item, left)


def test_digits_and_carries_add_up_to_the_answer() -> None:
    tasks = (arithmetic.addition, arithmetic.subtraction, arithmetic.multiplication)
    for item in (item for task in tasks for item in draw(task)):
        result = re.findall(r"\d+", item.answer)[-1]
        written = re.findall(r"[Ww]rite (\d)", item.thoughts[Effort.HIGH])
        assert "".join(reversed(written)).lstrip("0") == result.lstrip("0")
        assert item.thoughts[Effort.HIGH].endswith(f"{' '.join(reversed(result))}: {result}.")
        for x, sign, y, borrow in re.findall(
            r"(\d)(<|>=)(\d+), .*borrow (\d)", item.thoughts[Effort.HIGH]
        ):
            assert (int(x) < int(y)) == (sign == "<") == (borrow == "1")


def parts(pattern: str, answer: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, answer)
    assert match is not None
    return match.groups()


def test_comparing_is_right() -> None:
    for item in draw(arithmetic.comparison):
        a, b = re.findall(r"[\d.]*\d", item.questions[0])
        word, number = parts(r"The (larger|smaller) number is (.*)\.", item.answer)
        assert number == (max if word == "larger" else min)(a, b, key=float)
        for x, sign, y in re.findall(r"(\d)([<=>])(\d)", item.thoughts[Effort.MEDIUM]):
            assert sign == ("<" if x < y else ">" if x > y else "=")


def test_sorting_takes_the_smallest_again_and_again() -> None:
    for item in draw(arithmetic.sorting):
        numbers = list(map(int, item.about.split(", ")))
        assert list(map(int, re.findall(r"\d+", item.answer))) == sorted(numbers)
        assert all(
            re.findall(r"\d+", q)[: len(numbers)] == list(map(str, numbers)) for q in item.questions
        )
        for effort in (Effort.MEDIUM, Effort.HIGH):
            taken = []
            for line in item.thoughts[effort].splitlines():
                if "digit" in line:
                    continue
                left, _, smallest = line.rstrip(".").partition(": ")
                taken.append(int(smallest or left))
                assert taken[-1] == min(map(int, left.split(", ")))
            if effort is Effort.MEDIUM:
                assert taken == sorted(numbers)


def test_letters_are_those_of_the_word() -> None:
    for item in draw(strings.reverse):
        word, backwards = parts(r"The reverse of (\w+) is (\w+)\.", item.answer)
        assert backwards == word[::-1]
        numbered = [f"{n} {letter}" for n, letter in enumerate(word, 1)]
        for thought in (item.thoughts[Effort.MEDIUM], item.thoughts[Effort.HIGH]):
            assert ", ".join(numbered) in thought
            assert ", ".join(numbered[::-1]) in thought
    for item in draw(strings.count):
        letter, times, word = parts(r"The letter (\w) appears (\d+) times? in (\w+)\.", item.answer)
        assert word.count(letter) == int(times)
        marks = re.findall(r"(\w) (no|\d+)[,.]", item.thoughts[Effort.HIGH])
        assert "".join(one for one, _ in marks) == word
        assert [one for one, mark in marks if mark != "no"] == [letter] * int(times)
    for item in draw(strings.length):
        word, length = parts(r"The word (\w+) has (\d+) letters\.", item.answer)
        assert len(word) == int(length)
        assert f"{length} {word[-1]}." in item.thoughts[Effort.HIGH]
    for item in draw(strings.letter):
        name, word, letter = parts(
            r"(The first letter|The last letter|Letter \d+) of (\w+) is (\w)\.", item.answer
        )
        place = {"The first letter": 1, "The last letter": len(word)}.get(name)
        assert word[(place or int(name.split()[-1])) - 1] == letter
    for item in draw(strings.uppercase):
        word, upper = parts(r"In uppercase (\w+) is (\w+)\.", item.answer)
        assert word.upper() == upper


def test_results_are_those_of_the_tools_and_make_the_answer() -> None:
    names = {tool.name for tool in BUILT_IN}
    for chat in dialogues.training(0, 800):
        calls = [c for message in chat.messages for c in message.get("tool_calls", ())]
        results = [m["content"] for m in chat.messages if m["role"] == "tool"]
        offered = {tool["function"]["name"] for tool in chat.tools}
        assert len(calls) == len(results)
        for made, result in zip(calls, results, strict=True):
            function = made["function"]
            assert function["name"] in offered
            if function["name"] in names:
                assert call(BUILT_IN, function["name"], function["arguments"]) == result
            else:
                own = next(iter(json.loads(result).values())) if result[0] == "{" else result
                assert any(f" is {own}." in message["content"] for message in chat.messages)


def test_answers_on_the_library_are_its_docstrings() -> None:
    for item in draw(library.looked_up, 60):
        name, _, sentence = item.answer.partition(": ")
        assert sentence in documentation(name)
        assert item.calls[0].value == name
    assert "str.upper: Return a copy of the string converted to uppercase." in {
        item.answer for item in draw(library.by_heart, 1000)
    }


def test_every_chat_can_be_rendered() -> None:
    for chat in dialogues.held_out(0, 2):
        value = json.loads(chat.line())
        settled = Chat.of(
            value["messages"],
            tools=value.get("tools"),
            reasoning_effort=value["reasoning_effort"],
            date=value["date"],
        )
        assert f"Current date: {chat.date}" in contents(from_chat(settled))[0]
