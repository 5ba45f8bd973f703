"""One question with its worked answer, before it becomes a chat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ossia.text import Effort
from recipes.stdlib.first_typed import KEYS

_HELD_OUT_SHARE = 20


@dataclass(frozen=True)
class Call:
    """A tool's name, what the model writes into its one parameter, and what comes back."""

    tool: str
    parameter: str
    value: str
    result: str


@dataclass(frozen=True)
class Item:
    """One question and how it is answered at every effort.

    is_held_out: whether it is never trained on. questions: ways to ask it. thoughts: the analysis
    by effort (a line or none, short, step by step), before the first call if there are calls; an
    empty one is left out. answer: the final text, always in the same words, so that an answer is
    right if it is equal. about: what it asks for, if that alone says it after a question of the
    same task and topic ("And len?").
    """

    task: str
    is_held_out: bool
    questions: tuple[str, ...]
    thoughts: dict[Effort, str]
    answer: str
    calls: tuple[Call, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()  # that the question needs
    about: str = ""
    topic: str = ""


def withheld(key: str) -> bool:
    """Whether what goes by this name is held out: one in twenty by its hash, the same in every run,
    and what people type first.
    """
    return key in KEYS or hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_SHARE == 0
