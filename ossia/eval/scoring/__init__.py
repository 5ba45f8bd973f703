"""Scorers: whether a reply is right, the answer that was found in it, and why it is wrong."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from ossia.eval.scoring import bounded, choices, code, judge, numbers
from ossia.eval.tasks import Question, Scorer

# Asks the judge, and returns its reply.
Judge = Callable[[str], str]


@dataclass(frozen=True)
class Verdict:
    """answer: what was found in the reply, in a form in which equal answers are equal texts; None
    if nothing was found, or the scorer looks for none. note: why the reply is wrong.
    """

    right: bool
    answer: str | None = None
    note: str = ""


def score(question: Question, reply: str, ask_judge: Judge | None = None) -> Verdict:
    """Compare a reply's final text with the answers on file. Raises OssiaError where the scorer
    cannot work, as on a system without the sandbox.
    """
    if not reply.strip():
        return Verdict(False, note="an empty reply")
    if question.scorer is Scorer.JUDGE:
        assert ask_judge is not None, "the runner names a judge where a question needs one"
        return _judged(question, reply, ask_judge)
    return _SCORERS[question.scorer](question, reply)


def needs(question: Question) -> str | None:
    """What a question lacks for its scorer; None if it has everything."""
    scorer = question.scorer
    if scorer is Scorer.REGEX:
        return _wrong_pattern(question.pattern)
    if scorer is Scorer.JSON_SCHEMA:
        return _wrong_schema(question)
    if scorer is Scorer.PYTHON:
        return None if question.tests.strip() else "the scorer python needs tests"
    if scorer is Scorer.JUDGE:
        stated = question.answers or question.criteria
        return None if stated else "the scorer judge needs an answer or criteria"
    if not question.answers:
        return f"the scorer {scorer} needs an answer"
    if scorer is Scorer.NUMBER:
        wrong = next((a for a in question.answers if numbers.parse(a) is None), None)
        return None if wrong is None else f"the answer {wrong!r} is not a number"
    if scorer is Scorer.CHOICE:
        return _wrong_letters(question)
    return None


def _wrong_pattern(pattern: str) -> str | None:
    if not pattern:
        return "the scorer regex needs a pattern"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"pattern is no regular expression: {error}"
    return None


def _wrong_schema(question: Question) -> str | None:
    if question.schema is None:
        return "the scorer json-schema needs a schema"
    if find_spec("jsonschema") is None:
        return "the scorer json-schema needs the package jsonschema; pip install 'ossia[eval]'"
    return None


def _wrong_letters(question: Question) -> str | None:
    count = len(question.choices) or 26
    for answer in question.answers:
        found = choices.letters(answer)
        if not found or max(found) > chr(ord("A") + count - 1):
            return f"the answer {answer!r} is no letter of its choices"
    return None


def _exact(question: Question, reply: str) -> Verdict:
    found = unicodedata.normalize("NFC", reply.strip())
    right = any(found == unicodedata.normalize("NFC", a.strip()) for a in question.answers)
    return Verdict(right, found)


def _number(question: Question, reply: str) -> Verdict:
    found = numbers.answer(reply)
    if found is None:
        return Verdict(False, note="no single number is stated")
    wanted = [numbers.parse(answer) for answer in question.answers]
    right = any(found.equals(w, question.tolerance) for w in wanted if w is not None)
    return Verdict(right, str(found))


def _choice(question: Question, reply: str) -> Verdict:
    found = choices.answer(reply, question.choices)
    if not found:
        return Verdict(False, note="no option is stated")
    wanted = [choices.letters(answer) for answer in question.answers]
    return Verdict(found in wanted, "".join(sorted(found)))


def _contains(question: Question, reply: str) -> Verdict:
    text = _folded(reply)
    for answer in question.answers:
        start, end = (r"(?<!\w)" if _folded(answer)[:1].isalnum() else ""), r"(?!\w)"
        if re.search(start + re.escape(_folded(answer)) + end, text):
            return Verdict(True)
    return Verdict(False, note="none of the answers is in it")


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _regex(question: Question, reply: str) -> Verdict:
    problem = bounded.run("regex", question.pattern, reply)
    return Verdict(problem is None, note=problem or "")


def _json_schema(question: Question, reply: str) -> Verdict:
    text = _fenced_json(reply)
    problem = bounded.run("json-schema", question.schema, text)
    if problem is not None:
        return Verdict(False, note=problem)
    value = json.loads(text)
    if question.answers and value not in [_parsed(answer) for answer in question.answers]:
        return Verdict(False, json.dumps(value, sort_keys=True), "another value")
    return Verdict(True, json.dumps(value, sort_keys=True))


def _fenced_json(reply: str) -> str:
    found = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", reply.strip(), re.DOTALL)
    return found[1] if found else reply


def _parsed(answer: str) -> object:
    try:
        return json.loads(answer)
    except ValueError:
        return answer


def _python(question: Question, reply: str) -> Verdict:
    problem = code.problem(reply, question.tests, question.prompt_code)
    return Verdict(problem is None, note=problem or "")


def _judged(question: Question, reply: str, ask_judge: Judge) -> Verdict:
    grade = judge.grade(ask_judge(judge.prompt(question, reply)))
    if grade is None:
        return Verdict(False, note="the judge gave no grade")
    return Verdict(grade, note="" if grade else "the judge says it is wrong")


_SCORERS: dict[Scorer, Callable[[Question, str], Verdict]] = {
    Scorer.EXACT: _exact,
    Scorer.NUMBER: _number,
    Scorer.CHOICE: _choice,
    Scorer.REGEX: _regex,
    Scorer.CONTAINS: _contains,
    Scorer.JSON_SCHEMA: _json_schema,
    Scorer.PYTHON: _python,
}
