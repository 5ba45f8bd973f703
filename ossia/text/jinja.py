"""Jinja as transformers sets it up for chat templates: sandbox, white space, functions, tags."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Macro

from ossia.text.sandbox import Sandbox, compiled, rendered


class Template:
    """A compiled chat template; `source` names it in errors. Raises BrokenTemplate if it cannot be
    compiled.
    """

    def __init__(self, text: str, source: str):
        self._source = source
        self._template = compiled(_environment(), text, source)

    def fill(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables. Raises OssiaError if the template fails or complains."""
        return rendered(self._template, variables, self._source)


def clock(date: datetime.date | None) -> Callable[[str], str]:
    """The `strftime_now` of a template, at midnight of `date`, or now."""

    def strftime_now(form: str) -> str:
        if date is None:
            return datetime.datetime.now().strftime(form)
        return datetime.datetime.combine(date, datetime.time()).strftime(form)

    return strftime_now


def _environment() -> Sandbox:
    environment = Sandbox([_Generation, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = clock(None)
    return environment


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which TRL's templates put around what a model writes
    itself. As in transformers its content is a scope of its own and is printed as it is.
    """

    tags: ClassVar = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
