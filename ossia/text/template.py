"""Chats rendered by a folder's jinja template as transformers does; user text stays ordinary."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import jinja2.ext

from ossia.errors import OssiaError
from ossia.text.chat import Chat, ChatMessage, Role, Turn
from ossia.text.sandbox import Sandbox, compiled, rendered
from ossia.text.tags import END_THINK, THINK, TagParser
from ossia.text.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF900)


class TemplateFormat:
    """A chat template and the vocabulary it was written for.

    `variables` are the special tokens that templates refer to, such as `bos_token`. Raises
    OssiaError that names `source` if the template cannot be compiled.
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
        # A control token could begin at these characters: untrusted text gets a breaker after each.
        first = "".join({name[0] for name in tokenizer.control if name})
        self._could_begin = re.compile(f"[{re.escape(first)}]" if first else r"(?!)")
        self._template = compiled(_environment(), template, source)

    def render(self, chat: Chat) -> list[int]:
        """See ChatFormat.render. A chat's `thinking` is the template's `enable_thinking`."""
        text, breaker = self.render_text(chat)
        return self._tokenizer.encode_control(text, breaker=breaker)

    def render_turns(self, chat: Chat) -> list[Turn]:
        """See ChatFormat.render_turns. A reply without reasoning answers a prompt that turns
        thinking off.
        """
        context = self._context(chat)
        return [
            self._turn(context, n)
            for n, message in enumerate(context.messages)
            if message.role is Role.ASSISTANT
        ]

    def render_text(self, chat: Chat, *, add_generation_prompt: bool = True) -> tuple[str, str]:
        """The rendered text, and the breaker in it (see `_Context`)."""
        context = self._context(chat)
        text = self._fill(
            context,
            len(context.messages),
            add_generation_prompt=add_generation_prompt,
            thinking=chat.thinking,
        )
        return text, context.breaker

    def _turn(self, context: _Context, n: int) -> Turn:
        """The prompt before message `n`, and that message as the model is to write it."""
        message, breaker = context.messages[n], context.breaker
        thinks = bool(message.reasoning) or message.content.startswith(THINK)
        whole = self._fill(context, n + 1, add_generation_prompt=False, thinking=thinks)
        prompt = self._fill(context, n, add_generation_prompt=True, thinking=thinks)
        reply = whole.removeprefix(prompt)
        if reply == whole:
            raise OssiaError(f"{self._source}: does not continue its own prompt with a reply")
        if message.reasoning and self._break(message.reasoning.strip(), breaker) not in reply:
            raise OssiaError(f"{self._source}: has no place for a reply's reasoning")
        ids = self._tokenizer.encode_control(reply, breaker=breaker)
        stop = next((n for n, id in enumerate(ids) if id in self.stop_ids), None)
        if stop is None:
            raise OssiaError(f"{self._source}: no id that stops the model ends a reply")
        return self._tokenizer.encode_control(prompt, breaker=breaker), ids[: stop + 1]

    def _context(self, chat: Chat) -> _Context:
        if chat.response_format is not None:
            raise OssiaError(
                "response_format: chat templates have no place for one; ask for the format in the "
                "instructions"
            )
        chat.refuse_unenforceable()
        messages = _with_instructions(chat)
        rendered = [self._message(message) for message in messages]
        tools = [tool.to_dict() for tool in chat.offered_tools] or None
        breaker = self._unused_character(rendered, tools)
        variables = dict(self._variables)
        if chat.reasoning_effort is not None:
            variables["reasoning_effort"] = str(chat.reasoning_effort)
        return _Context(
            messages,
            breaker,
            [self._break_message(message, breaker) for message in rendered],
            self._break(tools, breaker),
            {**variables, "strftime_now": lambda form: _moment(chat.date).strftime(form)},
        )

    def _fill(
        self, context: _Context, count: int, *, add_generation_prompt: bool, thinking: bool
    ) -> str:
        """The template's text for the first `count` messages."""
        variables = {
            **context.variables,
            "messages": context.rendered[:count],
            "tools": context.tools,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": thinking,
        }
        return rendered(self._template, variables, self._source)

    def parser(self, prompt: Sequence[int] = (), /) -> TagParser:
        """A parser of a reply to `prompt`, which may have begun the reply's reasoning already."""
        return TagParser(self._tokenizer, prompt)

    def _message(self, message: ChatMessage) -> dict[str, Any]:
        """A message as templates expect it, with each part where this template looks for it."""
        role, content = message.role, message.content
        if role is Role.DEVELOPER and "developer" not in self._text:
            role = Role.SYSTEM
        rendered: dict[str, Any] = {"role": str(role), "content": content}
        if message.reasoning:
            rendered["reasoning_content"] = message.reasoning
            if "reasoning_content" not in self._text and END_THINK in self._text:
                rendered["content"] = f"{THINK}\n{message.reasoning}\n{END_THINK}\n\n{content}"
        if message.name is not None:
            rendered["name"] = message.name
        if message.tool_call_id is not None:
            rendered["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            rendered["tool_calls"] = [call.to_dict() for call in message.tool_calls]
        return rendered

    def _unused_character(self, *values: Any) -> str:
        used = set(self._text + json.dumps(values, ensure_ascii=False, default=str))
        character = next((chr(code) for code in _PRIVATE_USE if chr(code) not in used), None)
        if character is None:
            raise OssiaError("messages: they use every private-use character; leave one out")
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
        """`value` with breakers in all its strings, keys included."""
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


@dataclass(frozen=True)
class _Context:
    """A chat as the template reads it.

    The breaker follows each character of the messages and tools that a control token could begin
    with, so that none can form from them, whatever the template cuts or joins. It is a private-use
    character that occurs nowhere else. Only the <think>...</think> at the beginning of an
    assistant's content stays as it is: templates look for it.
    """

    messages: Sequence[ChatMessage]
    breaker: str
    rendered: Sequence[dict[str, Any]]  # the messages, with breakers
    tools: Any  # with breakers
    variables: Mapping[str, Any]


def _with_instructions(chat: Chat) -> tuple[ChatMessage, ...]:
    """The messages, with the chat's instructions at the beginning of the first system message."""
    if not chat.instructions:
        return chat.messages
    if chat.messages and chat.messages[0].role in (Role.SYSTEM, Role.DEVELOPER):
        first, *others = chat.messages
        merged = f"{chat.instructions}\n\n{first.content}" if first.content else chat.instructions
        return (replace(first, content=merged), *others)
    return (ChatMessage(Role.SYSTEM, chat.instructions), *chat.messages)


def _environment() -> Sandbox:
    """A sandbox with the functions of transformers, and JSON without escapes."""
    environment = Sandbox([jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _to_json)
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


def _moment(date: datetime.date | None) -> datetime.datetime:
    if date is None:
        return datetime.datetime.now()
    return datetime.datetime.combine(date, datetime.time())
