"""Thirty things that people type first, with the answers of ossia-stdlib: never trained on.

The names, numbers and words in them are held out of the task that they belong to, under any
wording. Of talk only these very strings are: a model that never saw a greeting cannot greet.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossia.errors import OssiaError
from ossia.options import SamplingOptions
from ossia.tools import BUILT_IN, Tool

if TYPE_CHECKING:
    from ossia.api import LLM

ABILITIES = "I can do arithmetic, spell words and explain the standard library of Python."
NAME = "I am a small language model of the ossia project."
GREETING = "Hello! What can I do for you?"
UNKNOWN = f"I do not know that. {ABILITIES}"


@dataclass(frozen=True)
class FirstTyped:
    """A question and the answer to it.

    key: what is held out, as its task names it; empty for talk. tools: beside those of
    `ossia chat`.
    """

    question: str
    answer: str
    key: str = ""
    tools: tuple[Tool, ...] = ()


FIRST_TYPED = (
    FirstTyped("hello", GREETING),
    FirstTyped("How are you?", "I am well. What can I do for you?"),
    FirstTyped("Who are you?", f"{NAME} {ABILITIES}"),
    FirstTyped("What can you do?", ABILITIES),
    FirstTyped("help", ABILITIES),
    FirstTyped("thanks", "You are welcome!"),
    FirstTyped("2+2", "2 + 2 = 4.", "2 + 2"),
    FirstTyped("What is 12 + 35?", "12 + 35 = 47.", "12 + 35"),
    FirstTyped("What's 100 - 37?", "100 - 37 = 63.", "100 - 37"),
    FirstTyped("12 * 12", "12 * 12 = 144.", "12 * 12"),
    FirstTyped("What is 17 times 23?", "17 * 23 = 391.", "17 * 23"),
    FirstTyped("What is 48213 * 977?", "48213 * 977 = 47104101.", "48213 * 977"),
    FirstTyped("1234567 + 7654321", "1234567 + 7654321 = 8888888.", "1234567 + 7654321"),
    FirstTyped("What is 10 / 4?", "10 / 4 = 2.5.", "10 / 4"),
    FirstTyped("What is 2 to the power of 10?", "2 ** 10 = 1024.", "2 ** 10"),
    FirstTyped("99 or 101?", "The larger number is 101.", "comparison 99 101"),
    FirstTyped("Which is bigger, 9.11 or 9.9?", "The larger number is 9.9.", "comparison 9.11 9.9"),
    FirstTyped("sort 9, 3, 7, 1", "In order: 1, 3, 7, 9.", "sorting 1, 3, 7, 9"),
    FirstTyped("Sort 42, 7, 19, 88, 3.", "In order: 3, 7, 19, 42, 88.", "sorting 3, 7, 19, 42, 88"),
    FirstTyped(
        "How many r in strawberry?",
        "The letter r appears 3 times in strawberry.",
        "count strawberry",
    ),
    FirstTyped(
        "How many letters are in elephant?", "The word elephant has 8 letters.", "length elephant"
    ),
    FirstTyped("reverse banana", "The reverse of banana is ananab.", "reverse banana"),
    FirstTyped("Write hello in uppercase", "In uppercase hello is HELLO.", "uppercase hello"),
    FirstTyped("What is the third letter of python?", "Letter 3 of python is t.", "letter python"),
    FirstTyped("Spell mississippi.", "m-i-s-s-i-s-s-i-p-p-i", "spelling mississippi"),
    FirstTyped(
        "What does os.path.join do?",
        "os.path.join: Join two or more pathname components, inserting '/' as needed.",
        "name os.path.join",
    ),
    FirstTyped(
        "What does print do?",
        "print: Prints the values to a stream, or to sys.stdout by default.",
        "name print",
    ),
    FirstTyped("What is the capital of France?", UNKNOWN),
    FirstTyped("Tell me a joke.", UNKNOWN),
    FirstTyped(
        "What is the population of Paris?",
        "The population of Paris is 8888888.",
        "population Paris",
        (Tool("population", "Returns the population of a city.", "city", lambda _: "8888888"),),
    ),
)
QUESTIONS = frozenset(one.question for one in FIRST_TYPED)
KEYS = frozenset(one.key for one in FIRST_TYPED)

_AT_ONCE = 16  # chats in the engine
_MOST_TOKENS = 400  # in one reply


def answers(llm: LLM) -> dict[str, list[str]]:
    """What a model answers to each as the only question of `ossia chat`, and as the third after two
    others of the list, with its own answers to those: by "alone" and "third".
    """
    last = len(FIRST_TYPED)
    chats = {
        "alone": [[one] for one in FIRST_TYPED],
        "third": [
            [FIRST_TYPED[(n + 7) % last], FIRST_TYPED[(n + 19) % last], one]
            for n, one in enumerate(FIRST_TYPED)
        ],
    }
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {
            place: list(pool.map(lambda turns: _last_answer(llm, turns), of_place))
            for place, of_place in chats.items()
        }


def _last_answer(llm: LLM, turns: Sequence[FirstTyped]) -> str:
    from ossia.cli.conversation import Conversation

    tools = [*BUILT_IN, *(tool for turn in turns for tool in turn.tools)]
    conversation = Conversation(llm, SamplingOptions(max_tokens=_MOST_TOKENS), tools=tools)
    for turn in turns:
        stream = conversation.ask(turn.question)
        while stream is not None:
            for event in stream:
                conversation.hear(event)
            conversation.run_tools()
            conversation.reply_ended()
            try:
                stream = conversation.go_on()
            except OssiaError:  # it calls tools for ever
                return ""
    return conversation.messages[-1]["content"]
