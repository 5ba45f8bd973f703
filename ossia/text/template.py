"""Chats rendered by a folder's jinja template as transformers does; user text stays ordinary."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

from ossia.errors import OssiaError
from ossia.text.calls import FUNCTION
from ossia.text.chat import (
    Chat,
    ChatMessage,
    ChatSettings,
    Messages,
    Role,
    ToolCall,
    ToolDescription,
    Turn,
)
from ossia.text.chat_template import ChatTemplate, parts, reasoned
from ossia.text.constrain import Grammar
from ossia.text.jinja import clock
from ossia.text.tag_grammar import TagGrammar
from ossia.text.tags import END_THINK, THINK, TagParser, begins_thinking
from ossia.text.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF900)
_LONGEST_WORD = 60  # characters of a control token's name, for a pattern of all its beginnings
DEFAULT, TOOL_USE = "default", "tool_use"  # of several templates, those that transformers chooses


class TemplateFormat:
    """A chat template, or several by name, and the vocabulary it was written for.

    As in transformers a chat with tools takes the template named tool_use if there is one, any
    other chat the one named default. `variables` are the special tokens that templates refer to,
    such as `bos_token`. A reply ends with an id of `stop_ids` or with the control token that the
    template puts after a reply: a base model's own end of text is another. Raises OssiaError that
    names `source` if a template cannot be compiled.
    """

    name = "template"

    def __init__(
        self,
        template: str | Mapping[str, str],
        tokenizer: Tokenizer,
        *,
        stop_ids: Iterable[int],
        variables: Mapping[str, str] | None = None,
        source: str = "chat template",
    ):
        named = {DEFAULT: template} if isinstance(template, str) else template
        self._names = sorted(named)
        self._templates = {
            name: ChatTemplate(named[name], source, variables or {})
            for name in (DEFAULT, TOOL_USE)
            if name in named
        }
        self._tokenizer = tokenizer
        self._source = source
        self._could_begin = _could_begin(tokenizer.control)
        self._stop_ids = frozenset(stop_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """See ChatFormat.stop_ids."""
        return self._all_stop_ids

    @cached_property
    def _all_stop_ids(self) -> frozenset[int]:
        closings = map(self._closing, self._templates.values())
        return self._stop_ids | {ids[-1] for ids in closings if ids}

    def render(self, chat: Chat | Messages, **settings: Unpack[ChatSettings]) -> list[int]:
        """See ChatFormat.render. A chat that turns `thinking` off sets the template's
        `enable_thinking`.
        """
        text, breaker = self.render_text(Chat.of(chat, **settings))
        return self._tokenizer.encode_control(text, breaker=breaker)

    def render_turns(self, chat: Chat, only: Collection[int] | None = None) -> list[Turn]:
        """See ChatFormat.render_turns. A reply without reasoning answers a prompt that turns
        thinking off.
        """
        context = self._context(chat)
        return [
            self._turn(context, n)
            for n, message in enumerate(context.messages)
            if message.role is Role.ASSISTANT and (only is None or n - context.added in only)
        ]

    def render_text(self, chat: Chat, *, add_generation_prompt: bool = True) -> tuple[str, str]:
        """The rendered text, and the breaker in it (see `_Context`)."""
        context = self._context(chat)
        text = context.fill(
            len(context.messages),
            add_generation_prompt=add_generation_prompt,
            thinking=None if chat.thinking else False,
        )
        return text, context.breaker

    def _turn(self, context: _Context, n: int) -> Turn:
        """The prompt before message `n`, and that message as the model is to write it."""
        message, breaker = context.messages[n], context.breaker
        thinks = bool(message.reasoning) or message.content.startswith(THINK)
        whole = context.fill(n + 1, add_generation_prompt=False, thinking=thinks)
        prompt = context.fill(n, add_generation_prompt=True, thinking=thinks)
        reply = whole.removeprefix(prompt)
        if reply == whole:
            raise OssiaError(f"{self._source}: does not continue its own prompt with a reply")
        if message.reasoning and self._break(message.reasoning.strip(), breaker) not in reply:
            raise OssiaError(f"{self._source}: has no place for a reply's reasoning")
        ids = self._tokenizer.encode_control(reply, breaker=breaker)
        stop = next((n for n, id in enumerate(ids) if id in self.stop_ids), None)
        if stop is None:  # the template closes a reply only when it writes the next turn
            ids += self._closing(context.template)
            if not ids or ids[-1] not in self.stop_ids:
                raise OssiaError(f"{self._source}: no id that stops the model ends a reply")
            stop = len(ids)
        return self._tokenizer.encode_control(prompt, breaker=breaker), ids[: stop + 1]

    def _closing(self, template: ChatTemplate) -> list[int]:
        """The ids after a reply, up to the control token that ends it; none without one."""
        control = self._tokenizer.control.values()
        for closing in template.closings:
            ids = self._tokenizer.encode_control(closing)
            end = next((n for n, id in enumerate(ids) if id in control), None)
            if end is not None:
                return ids[: end + 1]
        return []

    def _template_of(self, chat: Chat) -> ChatTemplate:
        for name in (TOOL_USE, DEFAULT) if chat.offered_tools else (DEFAULT,):
            if name in self._templates:
                return self._templates[name]
        raise OssiaError(
            f"{self._source}: none of its templates is named {DEFAULT}; there are "
            f"{', '.join(self._names)}"
        )

    def _context(self, chat: Chat) -> _Context:
        try:
            return self._broken_context(chat)
        except RecursionError as error:
            raise OssiaError("messages or tools: nested too deeply") from error

    def _broken_context(self, chat: Chat) -> _Context:
        template = self._template_of(chat)
        messages = _with_instructions(chat)
        rendered = [
            _message(message, template, f"messages[{n}]") for n, message in enumerate(messages)
        ]
        tools = [tool.to_dict() for tool in chat.offered_tools] or None
        breaker = _unused_character(template.text, rendered, tools)
        variables: dict[str, Any] = {"strftime_now": clock(chat.date)}
        if chat.reasoning_effort is not None:
            variables["reasoning_effort"] = str(chat.reasoning_effort)
        return _Context(
            template,
            messages,
            len(messages) - len(chat.messages),
            breaker,
            [self._break_message(message, breaker) for message in rendered],
            self._break(tools, breaker),
            variables,
        )

    def grammar(self, chat: Chat, prompt: Sequence[int], /) -> Grammar | None:
        """See ChatFormat.grammar. No template has a place for the answer's form, so the model does
        not know of it unless a message says it.
        """
        single = not chat.parallel_tool_calls and bool(chat.callees)
        if not (chat.is_constrained or single):
            return None
        template = self._template_of(chat)
        begun = begins_thinking(self._tokenizer, prompt)
        return TagGrammar(
            self._tokenizer,
            self.stop_ids,
            thinks=chat.thinking and THINK in template.text,
            begun=begun,
            xml=self._writes_tags,
        ).of(chat)

    @property
    def _writes_tags(self) -> bool:
        """Whether calls are in tags, as Qwen3-Coder writes them."""
        return any(FUNCTION in template.text for template in self._templates.values())

    def parser(
        self, prompt: Sequence[int] = (), tools: Sequence[ToolDescription] = (), /
    ) -> TagParser:
        """A parser of a reply to `prompt`, which may have begun the reply's reasoning already."""
        return TagParser(self._tokenizer, prompt, tools, bare_functions=self._writes_tags)

    def _break_message(self, message: dict[str, Any], breaker: str) -> dict[str, Any]:
        broken, content = self._break(message, breaker), message["content"]
        if (
            message["role"] == "assistant"
            and isinstance(content, str)
            and content.startswith(THINK)
        ):
            thought, end, answer = content.removeprefix(THINK).partition(END_THINK)
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
    """A chat as its template reads it.

    The breaker follows each character of the messages and tools that a control token could begin
    with, so that none can form from them, whatever the template cuts or joins. It is a private-use
    character that occurs nowhere else. Only the <think>...</think> at the beginning of an
    assistant's content stays as it is: templates look for it.
    """

    template: ChatTemplate
    messages: Sequence[ChatMessage]
    added: int  # messages before the chat's own
    breaker: str
    rendered: Sequence[dict[str, Any]]  # the messages, with breakers
    tools: Any  # with breakers
    variables: Mapping[str, Any]

    def fill(self, count: int, *, add_generation_prompt: bool, thinking: bool | None) -> str:
        """The template's text for the first `count` messages."""
        chosen = {} if thinking is None else {"enable_thinking": thinking}
        text = self.template.fill(
            self.rendered[:count],
            self.tools,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
            **chosen,
        )
        return text.replace(_escaped(self.breaker), self.breaker)


def _could_begin(control: Iterable[str]) -> re.Pattern[str]:
    """Where a control token could begin: at its first character, or, if that is a letter or digit,
    which every text is full of, where the rest of its name follows as far as the text goes.
    """
    names = [name for name in control if name]
    words = [name for name in names if name[0].isalnum() and len(name) <= _LONGEST_WORD]
    marks = {name[0] for name in names if name not in words}
    beginnings = [
        rf"{re.escape(name[0])}(?={re.escape(name[1:])}|{_beginning(name[1:])}\Z)" for name in words
    ]
    characters = [f"[{re.escape(''.join(sorted(marks)))}]"] if marks else []
    return re.compile("|".join([*characters, *beginnings]) or r"(?!)")


def _beginning(name: str) -> str:
    """A pattern for any beginning of a name."""
    pattern = ""
    for character in reversed(name):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return pattern


def _unused_character(text: str, *values: Any) -> str:
    """A private-use character that neither a template nor the values contain, as it is or escaped
    as JSON.
    """
    used = text + json.dumps(values, ensure_ascii=False, default=str)
    for code in _PRIVATE_USE:
        if chr(code) not in used and _escaped(chr(code)) not in used:
            return chr(code)
    raise OssiaError("messages: they use every private-use character; leave one out")


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _message(message: ChatMessage, template: ChatTemplate, where: str) -> dict[str, Any]:
    """A message as templates expect it, with each part where and in the form in which this template
    looks for it.
    """
    role, content = message.role, message.content
    if role is Role.DEVELOPER and "developer" not in template.text:
        role = Role.SYSTEM
    rendered: dict[str, Any] = {"role": str(role)}
    if message.reasoning:
        rendered |= reasoned(message.reasoning)
        if not template.takes_reasoning and template.splits_reasoning:
            content = f"{THINK}\n{message.reasoning}\n{END_THINK}\n\n{content}"
    rendered["content"] = parts(content) if template.takes_parts else content
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [
            _call(call, template, f"{where}.tool_calls[{n}]")
            for n, call in enumerate(message.tool_calls)
        ]
    return rendered


def _call(call: ToolCall, template: ChatTemplate, where: str) -> dict[str, Any]:
    """A call with its arguments in the form in which they were given, or in the other if the
    template takes only that.
    """
    rendered = call.to_dict()
    if call.source is not None:
        as_object = template.takes_objects or not template.takes_strings
    else:
        as_object = template.takes_objects and not template.takes_strings
    if as_object:
        rendered["function"]["arguments"] = call.source or _read_arguments(call, template, where)
    return rendered


def _read_arguments(call: ToolCall, template: ChatTemplate, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments) if call.arguments.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise OssiaError(
            f"{where}: its arguments are not a JSON object, which {template.source} writes in a "
            "form of its own"
        )
    return arguments


def _with_instructions(chat: Chat) -> tuple[ChatMessage, ...]:
    """The messages, with the chat's instructions at the beginning of the first system message."""
    if not chat.instructions:
        return chat.messages
    if chat.messages and chat.messages[0].role in (Role.SYSTEM, Role.DEVELOPER):
        first, *others = chat.messages
        merged = f"{chat.instructions}\n\n{first.content}" if first.content else chat.instructions
        return (replace(first, content=merged), *others)
    return (ChatMessage(Role.SYSTEM, chat.instructions), *chat.messages)
