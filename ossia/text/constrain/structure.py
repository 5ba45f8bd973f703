"""The form that a text must have: JSON by a schema, a regular expression, a choice, a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ossia.errors import OssiaError
from ossia.text.constrain.schema import check_schema

ANY_OBJECT: dict[str, Any] = {"type": "object"}

MAX_TEXT = 1 << 15  # characters of a regular expression or a grammar
MAX_LINES = 1000  # of a grammar: its rules can refer to one another, and compiling them recurses
MAX_CHOICES = 10_000

# Strings, comments and regular expressions of a grammar.
_NOT_RULES = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|#[^\n]*|/(?:[^/\\\n]|\\.)+/')


class Kind(StrEnum):
    """What describes the text; the values are vLLM's names."""

    JSON = "json"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


@dataclass(frozen=True)
class Structure:
    """The form of a text. where: the parameter that asks for it, by which errors name it. strict:
    what a schema asks for is enforced or refused; without, keywords that cannot be enforced are
    ignored.

    Raises OssiaError for what is too large to compile in bounded time and memory.
    """

    kind: Kind
    value: Any
    where: str
    strict: bool = True

    def __post_init__(self) -> None:
        """Refuse what is too large."""
        match self.kind:
            case Kind.JSON:
                check_schema(self.value, self.where, strict=self.strict)
            case Kind.REGEX | Kind.GRAMMAR:
                if len(self.value) > MAX_TEXT or self.value.count("\n") >= MAX_LINES:
                    raise OssiaError(
                        f"{self.where}: longer than {MAX_TEXT} characters or {MAX_LINES} lines"
                    )


def read_structured_outputs(value: Any, where: str = "structured_outputs") -> Structure | None:
    """The form that an object of vLLM's API asks for, by exactly one of `json` (a schema, or the
    text of one), `json_object` (true), `regex`, `choice` (a list of strings) and `grammar` (Lark).

    Raises OssiaError for anything else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise OssiaError(f"{where}: must be an object, not {value!r}")
    given = {key: item for key, item in value.items() if item is not None}
    for key in given:
        if key not in _READERS:
            raise OssiaError(f"{where}.{key}: there is no such structure: {', '.join(_READERS)}")
    if len(given) != 1:
        raise OssiaError(f"{where}: must have exactly one of {', '.join(_READERS)}")
    key, item = next(iter(given.items()))
    return _READERS[key](item, f"{where}.{key}")


def _json(value: Any, where: str) -> Structure:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise OssiaError(f"{where}: is not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise OssiaError(f"{where}: must be a JSON schema, not {value!r}")
    return Structure(Kind.JSON, value, where)


def _json_object(value: Any, where: str) -> Structure:
    if value is not True:
        raise OssiaError(f"{where}: must be true, not {value!r}")
    return Structure(Kind.JSON, ANY_OBJECT, where)


def _regex(value: Any, where: str) -> Structure:
    return Structure(Kind.REGEX, _text(value, where), where)


def _grammar(value: Any, where: str) -> Structure:
    text = _text(value, where)
    if re.search(r"<[^<>\s]+>", _NOT_RULES.sub("", text)):
        raise OssiaError(f"{where}: must not name tokens (<...>): it describes text")
    return Structure(Kind.GRAMMAR, text, where)


def _choice(value: Any, where: str) -> Structure:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise OssiaError(f"{where}: must be a list of strings, not {value!r}")
    if len(value) > MAX_CHOICES:
        raise OssiaError(f"{where}: has more than {MAX_CHOICES} strings")
    choices = tuple(_text(item, f"{where}[{n}]") for n, item in enumerate(value))
    return Structure(Kind.CHOICE, choices, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise OssiaError(f"{where}: must be a string, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OssiaError(f"{where}: has half of a surrogate pair, which no text has") from error
    return value


_READERS: Mapping[str, Callable[[Any, str], Structure]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
