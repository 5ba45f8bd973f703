"""Chats rendered by the folder's jinja template as transformers does, user text kept ordinary."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ossia.errors import OssiaError
from ossia.text.chat import ChatMessage, Turn, read_messages, read_reasoning_effort, read_tools
from ossia.text.tags import END_THINK, THINK, TagParser
from ossia.text.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF900)


class TemplateFormat:
    """A chat template and the vocabulary it was written for.

    `variables` are the special tokens that templates refer to (`bos_token`, …). OssiaError, naming
    `source`, if the template cannot be compiled.
    """

    name = "template"

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        *,
        stop_ids: Iterable[int],
        variables: Mapping[str, str] | None = None,
        source: str = "chat template",
    ):
        self.stop_ids = frozenset(stop_ids)
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._text = template
        self._source = source
        # Where a control token could begin: untrusted text gets a breaker after each of these
        # characters.
        first = "".join({name[0] for name in tokenizer.control if name})
        self._could_begin = re.compile(f"[{re.escape(first)}]" if first else r"(?!)")
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise OssiaError(f"{source}: not a jinja template: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
    ) -> list[int]:
        """See ChatFormat.render. `thinking` is the template's `enable_thinking`."""
        variables = _variables(thinking, reasoning_effort)
        text, breaker = self.render_text(messages, tools=tools, date=date, variables=variables)
        return self._tokenizer.encode_control(text, breaker=breaker)

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        date: str | None = None,
    ) -> list[Turn]:
        """See ChatFormat.render_turns. A reply without reasoning is one to `thinking=False`."""
        message = read_messages(messages)[-1]
        thinks = bool(message.reasoning) or message.content.startswith(THINK)
        given: dict[str, Any] = {
            "tools": tools,
            "date": date,
            "variables": _variables(thinks, reasoning_effort),
        }
        whole, breaker = self.render_text(messages, add_generation_prompt=False, **given)
        prompt, _ = self.render_text(messages[:-1], breaker=breaker, **given)
        reply = whole.removeprefix(prompt)
        if reply == whole:
            raise OssiaError(f"{self._source}: begins a reply otherwise than its own prompt does")
        if message.reasoning and self._break(message.reasoning.strip(), breaker) not in reply:
            raise OssiaError(f"{self._source}: has no place for a reply's reasoning")
        ids = self._tokenizer.encode_control(reply, breaker=breaker)
        stop = next((n for n, id in enumerate(ids) if id in self.stop_ids), None)
        if stop is None:
            raise OssiaError(f"{self._source}: ends a reply with no id that stops the model")
        return [(self._tokenizer.encode_control(prompt, breaker=breaker), ids[: stop + 1])]

    def render_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        date: str | None = None,
        variables: Mapping[str, Any] | None = None,
        breaker: str | None = None,
    ) -> tuple[str, str]:
        """The rendered text, and the character that stands in it wherever untrusted text was kept
        apart: one that these messages do not hold, unless it is given.

        The breaker follows each character of the messages and tools that a control token could
        begin with, so none can form from them, whatever the template cuts or joins. It is a
        private-use character that occurs nowhere else. Only the <think>…</think> that an
        assistant's content begins with stays as it is: templates look for it.
        """
        history = [self._message(message) for message in read_messages(messages)]
        offered = [tool.source for tool in read_tools(tools)] or None
        breaker = breaker or self._unused_character(history, offered)
        context = {
            **self._variables,
            "messages": [self._break_message(message, breaker) for message in history],
            "tools": self._break(offered, breaker),
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": lambda form: _today(date).strftime(form),
            **(variables or {}),
        }
        try:
            return self._template.render(context), breaker
        # A template is a program: it may divide by zero or recurse as well as call raise_exception.
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise OssiaError(f"{self._source}: cannot render these messages: {error}") from error
        except RecursionError as error:
            raise OssiaError(f"{self._source}: recurses without end") from error

    def parser(self, prompt: Sequence[int] = ()) -> TagParser:
        """A parser of a reply to `prompt`, which may have opened the reply's reasoning already."""
        return TagParser(self._tokenizer, prompt)

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        """A message as templates expect it, each part where this template looks for it."""
        role, content = message.role, message.content
        if role == "developer" and "developer" not in self._text:
            role = "system"
        rendered: dict[str, Any] = {"role": role, "content": content}
        if message.reasoning:
            rendered["reasoning_content"] = message.reasoning
            if "reasoning_content" not in self._text and END_THINK in self._text:
                rendered["content"] = f"{THINK}\n{message.reasoning}\n{END_THINK}\n\n{content}"
        if message.name is not None:
            rendered["name"] = message.name
        if message.tool_call_id is not None:
            rendered["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            rendered["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                    **({"id": call.id} if call.id is not None else {}),
                }
                for call in message.tool_calls
            ]
        return rendered

    def _unused_character(self, *values: Any) -> str:
        used = set(self._text + json.dumps(values, ensure_ascii=False, default=str))
        character = next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), None)
        if character is None:
            raise OssiaError("messages: hold every private-use character there is: leave one out")
        return character

    def _break_message(self, message: dict[str, Any], breaker: str) -> dict[str, Any]:
        broken = self._break(message, breaker)
        if message["role"] == "assistant" and message["content"].startswith(THINK):
            thought, end, answer = message["content"].removeprefix(THINK).partition(END_THINK)
            if end:
                thought, answer = self._break(thought, breaker), self._break(answer, breaker)
                broken["content"] = THINK + thought + END_THINK + answer
        return broken

    def _break(self, value: Any, breaker: str) -> Any:
        """`value` with the breaker in every string, keys included."""
        match value:
            case str():
                return self._could_begin.sub(lambda match: match.group() + breaker, value)
            case Mapping():
                return {
                    self._break(key, breaker): self._break(item, breaker)
                    for key, item in value.items()
                }
            case list() | tuple():
                return [self._break(item, breaker) for item in value]
        return value


def _variables(thinking: bool, reasoning_effort: str | None) -> dict[str, Any]:
    variables: dict[str, Any] = {"enable_thinking": thinking}
    if read_reasoning_effort(reasoning_effort) is not None:
        variables["reasoning_effort"] = reasoning_effort
    return variables


def _environment() -> jinja2.Environment:
    """The sandbox of transformers: its white space, JSON without HTML escapes, its functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _today(date: str | None) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    except ValueError as error:
        raise OssiaError(f"date must be YYYY-MM-DD, not {date!r}") from error
