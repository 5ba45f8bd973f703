"""The body of a <tool_call> as events: JSON, or the tags that Qwen3-Coder writes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from ossia.text.chat import ToolDescription, bare_name, call_of
from ossia.text.events import Event, ToolCallDelta, ToolCallStart

FUNCTION, END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"

Tools = Mapping[str, ToolDescription]

_JSON_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_JSON_END = re.compile(r"\s*\}\s*\Z")  # the brace that closes the call, not the arguments
FUNCTION_HEAD = re.compile(rf"\s*{FUNCTION}([^<>\s]+)>")
# A parameter that the next tag ends, as its own end is missing, belongs to the call all the same.
_WHOLE_PARAMETER = re.compile(
    rf"{_PARAMETER}([^<>\n]+)>(.*?)(?:{_END_PARAMETER}|(?={_PARAMETER}))", re.S
)
_LAST_PARAMETER = re.compile(
    rf"{_PARAMETER}([^<>\n]+)>(.*?)(?:(?={_PARAMETER})|(?={END_FUNCTION})|\Z)", re.S
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?")
_PYTHON = ("{'", "['", "[{'")  # how objects and lists begin as Python prints them


def named_head(text: str, tools: Tools) -> bool | None:
    """Whether a text begins with the tag of a function of `tools`; None if it may still become
    one.
    """
    head = FUNCTION_HEAD.match(text)
    if head is not None:
        return bare_name(head[1], tools) in tools
    name = text.removeprefix(FUNCTION)
    written = f"{FUNCTION}{name}" == text or FUNCTION.startswith(text)
    return None if written and not re.search(r"[<>\s]", name) else False


class CallBody(Protocol):
    """Reads the body of one tag. `calls` is the number of calls found in it so far; `rest` is the
    text after a call that has ended by itself. `malformed`: its arguments ended and are no JSON.
    """

    calls: int
    rest: str | None
    malformed: bool

    def push(self, text: str) -> list[Event]:
        """The events of more text."""
        ...

    def finish(self) -> list[Event]:
        """The events still held back when the tag ends; if there was no call at all, none."""
        ...


class JsonCall:
    """`{"name": …, "arguments": …}`. The arguments stream once the name before them is known.

    A body in another order or form, or a list of calls, is read when it is complete.
    """

    rest: str | None = None

    def __init__(self, index: int, tools: Tools):
        self.calls = 0
        self.malformed = False
        self._index, self._tools = index, tools
        self._body = ""
        self._arguments_at = self._shown_to = 0

    def push(self, text: str) -> list[Event]:
        self._body += text
        events: list[Event] = []
        if not self.calls:
            head = _JSON_HEAD.match(self._body)
            if head is None:
                return []
            self._arguments_at = self._shown_to = head.end()
            events += self._start(head[1])
        held = _JSON_END.search(self._body, self._shown_to)
        return events + self._arguments(held.start() if held else len(self._body))

    def finish(self) -> list[Event]:
        if self.calls:
            if read_value(self._body[self._arguments_at : self._shown_to]) is not None:
                return []
            self.malformed = True
            return self._arguments(len(self._body))
        value = read_value(self._body)
        calls = [call_of(item) for item in (value if isinstance(value, list) else [value])]
        events: list[Event] = []
        for call in calls if all(calls) else []:
            assert call is not None
            name, arguments = call
            if not isinstance(arguments, str):
                arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
            events += [*self._start(name), ToolCallDelta(self._index + self.calls - 1, arguments)]
        return events

    def _start(self, name: str) -> list[Event]:
        self.calls += 1
        return [ToolCallStart(self._index + self.calls - 1, bare_name(name, self._tools))]

    def _arguments(self, end: int) -> list[Event]:
        text = self._body[self._shown_to : end]
        self._shown_to = end
        return [ToolCallDelta(self._index, text)] if text else []


class FunctionCall:
    """`<function=NAME>`, `<parameter=KEY>` with a value as text, and their ends. The arguments
    become JSON, a parameter at a time, with values of the types that the tool's schema gives.
    """

    malformed = False  # values are text, and ends that are missing are implied

    def __init__(self, index: int, tools: Tools):
        self.calls = 0
        self.rest: str | None = None
        self._index, self._tools = index, tools
        self._body = ""
        self._read_to = 0  # end of the last parameter
        self._searched = 0  # no parameter ends before
        self._schema: Any = None
        self._keys = 0

    def push(self, text: str) -> list[Event]:
        before = len(self._body) - len(END_FUNCTION)
        self._body += text
        events: list[Event] = []
        if not self.calls:
            head = FUNCTION_HEAD.match(self._body)
            if head is None:
                return []
            self._read_to = self._searched = head.end()
            events += self._start(head[1])
        while (end := self._body.find(_END_PARAMETER, self._searched)) >= 0:
            self._searched = end + len(_END_PARAMETER)
            events += self._parameters(_WHOLE_PARAMETER, self._searched)
        self._searched = max(self._read_to, len(self._body) - len(_END_PARAMETER))
        end = self._body.find(END_FUNCTION, max(self._read_to, before))
        if end >= 0 and _PARAMETER not in self._body[self._read_to : end]:
            self.rest = self._body[end + len(END_FUNCTION) :]
            self._body = self._body[:end]
        return events

    def finish(self) -> list[Event]:
        if not self.calls:
            return []
        events = self._parameters(_LAST_PARAMETER, len(self._body))
        return [*events, ToolCallDelta(self._index, "}" if self._keys else "{}")]

    def _start(self, name: str) -> list[Event]:
        self.calls = 1
        name = bare_name(name, self._tools)
        tool = self._tools.get(name)
        schema = tool.parameters if tool is not None else None
        self._schema = schema.get("properties") if isinstance(schema, Mapping) else None
        return [ToolCallStart(self._index, name)]

    def _parameters(self, pattern: re.Pattern[str], end: int) -> list[Event]:
        """The parameters up to `end`."""
        events: list[Event] = []
        for key, text in pattern.findall(self._body[self._read_to : end]):
            schema = self._schema.get(key) if isinstance(self._schema, Mapping) else None
            value = typed(text.removeprefix("\n").removesuffix("\n"), schema)
            before = ", " if self._keys else "{"
            written = json.dumps(key, ensure_ascii=False), json.dumps(value, ensure_ascii=False)
            events.append(ToolCallDelta(self._index, f"{before}{written[0]}: {written[1]}"))
            self._keys += 1
        self._read_to = end
        return events


def typed(text: str, schema: Any) -> Any:
    """The value that a parameter's text stands for by its JSON schema, as in Qwen3-Coder's own
    parser: the text itself without a schema, and if it is no value of the schema's types.
    """
    types, word = types_of(schema), text.strip().lower()
    if word == "null" and types != {"string"}:
        return None
    if not types or "string" in types:
        return text
    if "boolean" in types and word in ("true", "false"):
        return word == "true"
    if types & {"integer", "number"} and re.fullmatch(r"[+-]?\d{1,300}", word):
        return int(word)
    if "number" in types and _NUMBER.fullmatch(word):
        return float(word)
    if types & {"object", "array"}:
        value = read_value(text)
        if isinstance(value, dict | list):
            return value
    return text


def types_of(schema: Any) -> set[str]:
    """The names of the types that a schema allows; empty if it does not say."""
    types: set[str] = set()
    for choice in (schema, *_choices(schema)):
        given = choice.get("type") if isinstance(choice, Mapping) else None
        names = given if isinstance(given, list) else [given]
        types |= {name for name in names if isinstance(name, str)}
    return types


def _choices(schema: Any) -> list[Any]:
    found = [schema.get(key) for key in ("anyOf", "oneOf")] if isinstance(schema, Mapping) else []
    return [choice for choices in found if isinstance(choices, list) for choice in choices]


def read_value(text: str) -> Any:
    """The value of JSON, or of a Python literal, which some models write; None for neither."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    if not text.lstrip().startswith(_PYTHON):
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return value if _is_plain(value) else None


def _is_plain(value: Any) -> bool:
    """Whether a Python literal is a value that JSON can hold."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
