"""Questions with their answers, read from JSON lines: what is asked, and how a reply is scored."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError, shortened
from ossia.system.files import json_object
from ossia.text import Chat

_MOST_BYTES = 1 << 30  # of a file, decompressed


class Scorer(StrEnum):
    """How a reply is compared with the answers on file (`ossia.eval.scoring`)."""

    EXACT = "exact"
    NUMBER = "number"
    CHOICE = "choice"
    REGEX = "regex"
    CONTAINS = "contains"
    JSON_SCHEMA = "json-schema"
    PYTHON = "python"
    JUDGE = "judge"


@dataclass(frozen=True)
class ToolResult:
    """What a call of a tool returns: `arguments` is the text that the model has to write."""

    name: str
    arguments: str
    result: str


@dataclass(frozen=True)
class Question:
    """A question, the answers that are right, and what a scorer needs beside them.

    id: unique in a run. task: the group in reports. messages: in the form of Chat Completions; the
    last is the user's. answers: any of them is right. choices: the texts of options A, B, ...
    tolerance: of a number, relative. pattern: of a regex, searched in the reply. schema: of a JSON
    reply. tests: Python that raises unless the reply's code is right; prompt_code: source that the
    reply may continue. criteria: what a judge is told beside the answers. tools, results: functions
    that the model may call, and what calls return; ossia's built-in tools run. date: YYYY-MM-DD for
    prompts that name the day.
    """

    id: str
    task: str
    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...] = ()
    scorer: Scorer = Scorer.EXACT
    choices: tuple[str, ...] = ()
    tolerance: float = 1e-9
    pattern: str = ""
    schema: Mapping[str, Any] | None = None
    tests: str = ""
    prompt_code: str = ""
    criteria: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    results: tuple[ToolResult, ...] = field(default=(), repr=False)
    date: str | None = None

    @property
    def text(self) -> str:
        """The user's last message."""
        return str(self.messages[-1]["content"])

    @property
    def digest(self) -> str:
        """A hash of everything that decides what is asked and what is right."""
        record = {**vars(self), "results": [vars(result) for result in self.results]}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def read(file: Path, limit: int | None = None) -> list[Question]:
    """The questions of a .jsonl file, or of one compressed with xz; the first `limit` of each task.

    Raises OssiaError, with file and line, for what is no question.
    """
    questions: list[Question] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        question = question_of(json_object(line, where), where, file.name.partition(".")[0])
        if question.id in lines:
            raise OssiaError(f"{where}: the id {question.id} is also that of {lines[question.id]}")
        lines[question.id] = number
        questions.append(question)
    if not questions:
        raise OssiaError(f"{file}: holds no question")
    return first_of_each(questions, limit)


def first_of_each(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each task; None is all."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.task] = seen.get(question.task, 0) + 1
        if limit is None or seen[question.task] <= limit:
            kept.append(question)
    return kept


def _lines(file: Path) -> Iterator[bytes]:
    try:
        if file.suffix == ".xz":
            with lzma.open(file) as opened:
                data = opened.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise OssiaError(f"cannot read {file}: {error.strerror or error}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise OssiaError(f"{file} is not an xz file: {error}") from error
    if len(data) > _MOST_BYTES:
        raise OssiaError(f"{file} holds more than {_MOST_BYTES >> 30} GiB")
    yield from data.splitlines()


def question_of(record: Mapping[str, Any], where: str, task: str) -> Question:
    """A question from an object with `question` or `messages`, `answer`, `scorer` and the scorer's
    own keys. `task` is the group of those that name none. Raises OssiaError, beginning with
    `where`, for a key that is unknown, missing or of another type.
    """
    reader = _Reader(dict(record), where)
    messages = _messages(reader)
    scorer = reader.one("scorer", str, Scorer.EXACT.value)
    if scorer not in list(Scorer):
        raise OssiaError(f"{where}: scorer must be one of {', '.join(Scorer)}, not {scorer!r}")
    results = tuple(
        _result(result, f"{where}: results[{n}]")
        for n, result in enumerate(reader.one("results", list, []))
    )
    content = json.dumps([messages, record.get("answer")], sort_keys=True)
    question = Question(
        id=str(reader.any("id", hashlib.sha256(content.encode()).hexdigest()[:12])),
        task=reader.one("task", str, task),
        messages=messages,
        answers=_answers(reader.any("answer"), where),
        scorer=Scorer(scorer),
        choices=tuple(map(str, reader.one("choices", list, []))),
        tolerance=reader.number("tolerance", 1e-9),
        pattern=reader.one("pattern", str, ""),
        schema=reader.one("schema", dict, None),
        tests=reader.one("tests", str, ""),
        prompt_code=reader.one("prompt_code", str, ""),
        criteria=reader.one("criteria", str, ""),
        tools=tuple(reader.one("tools", list, [])),
        results=results,
        date=reader.one("date", str, None),
    )
    reader.end()
    check(question, where)
    return question


def check(question: Question, where: str) -> None:
    """Raise OssiaError for a question that cannot be asked or scored."""
    from ossia.eval.scoring import needs

    try:
        Chat.of(question.messages, tools=question.tools or None, date=question.date)
    except OssiaError as error:
        raise OssiaError(f"{where}: {error}") from error
    if question.messages[-1].get("role") != "user":
        raise OssiaError(f"{where}: the last message must be the user's")
    if problem := needs(question):
        raise OssiaError(f"{where}: {problem}")


def _messages(reader: _Reader) -> tuple[Mapping[str, Any], ...]:
    text, messages = reader.one("question", str, None), reader.one("messages", list, None)
    if (text is None) == (messages is None):
        raise OssiaError(f"{reader.where}: give either question, a text, or messages")
    system = reader.one("system", str, None)
    found = [{"role": "user", "content": text}] if messages is None else messages
    if not found or not all(isinstance(message, dict) for message in found):
        raise OssiaError(f"{reader.where}: messages must be a list of objects")
    return (*([{"role": "system", "content": system}] if system else []), *found)


def _answers(value: Any, where: str) -> tuple[str, ...]:
    several = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_answer(answer, where) for answer in several)


def _answer(value: Any, where: str) -> str:
    if isinstance(value, dict):  # of a JSON reply
        return json.dumps(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise OssiaError(f"{where}: an answer is a text or a number, not {shortened(repr(value))}")


def _result(value: Any, where: str) -> ToolResult:
    if not isinstance(value, dict) or sorted(value) != ["arguments", "name", "result"]:
        raise OssiaError(f"{where}: must be an object with name, arguments and result")
    if not all(isinstance(part, str) for part in value.values()):
        raise OssiaError(f"{where}: name, arguments and result are texts")
    return ToolResult(**value)


class _Reader:
    """Takes the keys of an object one by one, so that what is left is unknown."""

    def __init__(self, rest: dict[str, Any], where: str) -> None:
        self._rest, self.where = rest, where

    def any(self, key: str, default: Any = None) -> Any:
        return self._rest.pop(key, default)

    def one(self, key: str, kind: type, default: Any) -> Any:
        value = self._rest.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = {str: "a text", list: "a list", dict: "an object"}
            found = shortened(repr(value))
            raise OssiaError(f"{self.where}: {key} must be {names[kind]}, not {found}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._rest.pop(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise OssiaError(f"{self.where}: {key} must be a number from 0 to 1, not {value!r}")
        return float(value)

    def end(self) -> None:
        if self._rest:
            unknown = shortened(", ".join(sorted(self._rest)))
            raise OssiaError(f"{self.where}: unknown key {unknown}")


def tasks_of(questions: Sequence[Question]) -> dict[str, int]:
    """The number of questions of each task."""
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.task] = counts.get(question.task, 0) + 1
    return counts
