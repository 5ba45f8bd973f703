"""What chat formats share: checked Chat Completions messages, and the protocols of a format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ossia.errors import OssiaError
from ossia.text.events import Event

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_EFFORTS = ("low", "medium", "high")
# Names under which clients send an earlier reply's reasoning back.
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")


# What the model reads, and what it writes then, up to the id that stops it.
Turn = tuple[list[int], list[int]]


class Parser(Protocol):
    """One completion's ids to events. A stop id may be pushed or left out; it is never shown."""

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes."""
        ...

    def finish(self) -> list[Event]:
        """The events still held back when the completion ends."""
        ...


class ChatFormat(Protocol):
    """How a model was taught to read a conversation and to mark the parts of its reply."""

    @property
    def name(self) -> str:
        """'harmony', 'template' or 'plain'."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a reply."""
        ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        thinking: bool = True,
        date: str | None = None,
    ) -> list[int]:
        """The prompt's ids, up to where the assistant's reply begins.

        `messages` and `tools` are those of Chat Completions; an assistant message may also have
        `reasoning`. `reasoning_effort` is low, medium or high (None: the model's default), `date`
        is YYYY-MM-DD (None: today). Text in them is ordinary text. Raises OssiaError for a message
        that no chat can hold.
        """
        ...

    def render_turns(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        date: str | None = None,
    ) -> list[Turn]:
        """The last message, an assistant's, as the model is to write it: the prompt that `render`
        makes of those before it and the reply to that. A format whose replies end with a tool call
        has a turn for each call.

        Raises OssiaError for a message that `render` cannot hold, or the reply cannot.
        """
        ...

    def parser(self, prompt: Sequence[int] = ()) -> Parser:
        """A parser of a reply to `prompt`: some templates begin the reply's reasoning there."""
        ...


@dataclass(frozen=True)
class ToolCall:
    """A call the assistant made: `arguments` as it wrote them, usually JSON."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class ChatMessage:
    """One checked message of a conversation; absent content is ''."""

    role: str
    content: str = ""
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `parameters` is its JSON schema, `source` the given dict."""

    name: str
    description: str
    parameters: Any
    source: Mapping[str, Any]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """Check Chat Completions messages; OssiaError names a bad one. Unknown keys are ignored."""
    return [_read_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _read_message(message: Mapping[str, Any], where: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise OssiaError(f"{where}: a message is an object with role and content, not {message!r}")
    role = message.get("role")
    if role not in ROLES:
        raise OssiaError(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r}")
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    return ChatMessage(
        role=role,
        content=_read_content(message.get("content"), f"{where}.content"),
        name=_optional_string(message.get("name"), f"{where}.name"),
        reasoning=_optional_string(reasoning, f"{where}.reasoning"),
        tool_calls=tuple(
            _read_tool_call(call, f"{where}.tool_calls[{n}]")
            for n, call in enumerate(message.get("tool_calls") or ())
        ),
        tool_call_id=_optional_string(message.get("tool_call_id"), f"{where}.tool_call_id"),
    )


def _read_content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise OssiaError(f"{where}: must be a string or a list of text parts, not {content!r}")
    for n, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind != "text" or not isinstance(part.get("text"), str):
            raise OssiaError(
                f"{where}[{n}]: only parts of type 'text' with a text can be read, not {kind!r}"
            )
    return "".join(part["text"] for part in content)


def _read_tool_call(call: Any, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise OssiaError(f"{where}: needs a function with a name and arguments")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return ToolCall(function["name"], arguments, _optional_string(call.get("id"), f"{where}.id"))


def _optional_string(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise OssiaError(f"{where}: must be a string, not {value!r}")
    return value


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """Check Chat Completions function tools; OssiaError names the one at fault."""
    checked = []
    for n, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise OssiaError(f"tools[{n}]: needs type 'function' and a function with a name")
        description = _optional_string(
            function.get("description"), f"tools[{n}].function.description"
        )
        checked.append(Tool(function["name"], description or "", function.get("parameters"), tool))
    return checked


def read_reasoning_effort(effort: str | None) -> str | None:
    """Check a reasoning effort."""
    if effort is not None and effort not in REASONING_EFFORTS:
        raise OssiaError(
            f"reasoning_effort must be one of {', '.join(REASONING_EFFORTS)}, not {effort!r}"
        )
    return effort
