"""A chat as formats render it, checked once when it is made, and the protocols of a chat format."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from ossia.errors import OssiaError
from ossia.text.asked import (
    ANY_CHOICE,
    Callee,
    ResponseFormat,
    ToolChoice,
    ToolDescription,
    ToolMode,
    optional_string,
    read_response_format,
    read_tool_choice,
    read_tools,
)
from ossia.text.constrain import Grammar, Structure, read_structured_outputs
from ossia.text.events import Channel, Event

if TYPE_CHECKING:
    from ossia.text.harmony.messages import ToolNamespace

# Names under which clients send an earlier reply's reasoning back.
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
_NAMESPACE = "functions."  # of the tools that a developer offers, in harmony


class Role(StrEnum):
    """Who wrote a message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Effort(StrEnum):
    """The reasoning effort: how long a model thinks before it answers."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. `arguments` is as the model wrote it: usually JSON, but not checked.

    Calls in a `Reply` always have an id; in messages that clients send it may be absent. `source`
    is the arguments as an object, if they were given as one.
    """

    name: str
    arguments: str
    id: str | None = None
    source: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The call in Chat Completions' form."""
        function = {"name": self.name, "arguments": self.arguments}
        return {
            **({} if self.id is None else {"id": self.id}),
            "type": "function",
            "function": function,
        }


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation; absent content is ''."""

    role: Role
    content: str = ""
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def is_answer(self) -> bool:
        """Whether it is a reply that ends a turn: it has content and calls no tool."""
        return self.role is Role.ASSISTANT and bool(self.content) and not self.tool_calls


Messages = Sequence[Mapping[str, Any]]


class ChatSettings(TypedDict, total=False):
    """What a chat may set beside its messages, in the form of Chat Completions; None is the
    default.

    structured_outputs: vLLM's parameter (`read_structured_outputs`), instead of a response_format.
    parallel_tool_calls: False for one call at most. reasoning_effort: "low", "medium" or "high";
    the model's own default if None. thinking: False for an answer without reasoning, from models
    that can. date: YYYY-MM-DD, for prompts that name the day; today if None. instructions: what the
    developer asks for, before all messages. built_in: tools that a model was trained to call within
    its reasoning, which only harmony has.
    """

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | None
    structured_outputs: Mapping[str, Any] | None
    reasoning_effort: str | None
    thinking: bool
    date: str | None
    instructions: str | None
    built_in: Sequence[ToolNamespace]


@dataclass(frozen=True)
class Chat:
    """A conversation and what its next reply should be like. `Chat.of` makes one from the values
    of a Chat Completions request.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolDescription, ...] = ()
    tool_choice: ToolChoice = ANY_CHOICE
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    thinking: bool = True
    date: datetime.date | None = None
    instructions: str | None = None
    built_in: tuple[ToolNamespace, ...] = ()
    structured_outputs: Structure | None = None
    parallel_tool_calls: bool = True

    @classmethod
    def of(cls, messages: Chat | Messages, **settings: Unpack[ChatSettings]) -> Chat:
        """Check everything, once. A Chat is returned as it is. Raises OssiaError that names the
        first mistake.

        An assistant's message may carry its reasoning under any of `REASONING_KEYS`. Calls, tools
        and results are also read in the forms that models write and that older clients send: calls
        and tools without `type` and `function`, `parameters` for `arguments`, `function_call`, the
        role `function`, and the namespace `functions.` before a name. Other unknown keys of
        messages are ignored.
        """
        if isinstance(messages, Chat):
            if settings:
                raise OssiaError(f"{', '.join(settings)}: a Chat has its settings already")
            return messages
        if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
            raise OssiaError(f"messages: must be a list of messages, not {messages!r}")
        tools = read_tools(settings.get("tools"))
        names = frozenset(tool.name for tool in tools)
        response_format = read_response_format(settings.get("response_format"))
        structured_outputs = read_structured_outputs(settings.get("structured_outputs"))
        if response_format is not None and structured_outputs is not None:
            raise OssiaError("structured_outputs: give it or response_format, not both")
        return cls(
            messages=tuple(
                _read_message(message, names, f"messages[{n}]")
                for n, message in enumerate(messages)
            ),
            tools=tools,
            tool_choice=read_tool_choice(
                settings.get("tool_choice"), tools, others=bool(settings.get("built_in"))
            ),
            response_format=response_format,
            reasoning_effort=read_effort(settings.get("reasoning_effort")),
            thinking=settings.get("thinking", True),
            date=_read_date(settings.get("date")),
            instructions=optional_string(settings.get("instructions"), "instructions"),
            built_in=tuple(settings.get("built_in", ())),
            structured_outputs=structured_outputs,
            parallel_tool_calls=settings.get("parallel_tool_calls") is not False,
        )

    @property
    def offered_tools(self) -> tuple[ToolDescription, ...]:
        """The tools that the prompt describes: none if the reply must not call any."""
        return () if self.tool_choice.mode is ToolMode.NONE else self.tools

    @property
    def offered_built_in(self) -> tuple[ToolNamespace, ...]:
        """The built-in tools that the prompt describes."""
        return () if self.tool_choice.mode is ToolMode.NONE else self.built_in

    @property
    def built_in_names(self) -> frozenset[str]:
        """The names by which built-in tools are called."""
        return frozenset(name for namespace in self.built_in for name in namespace.names)

    @property
    def structure(self) -> Structure | None:
        """The form of the answer; None for any text."""
        if self.structured_outputs is not None or self.response_format is None:
            return self.structured_outputs
        return self.response_format.structure

    @property
    def must_call(self) -> bool:
        """Whether the reply is to end with calls instead of an answer."""
        return self.tool_choice.mode is ToolMode.REQUIRED

    @property
    def callees(self) -> tuple[Callee, ...]:
        """The functions that the reply may call, with the form of their arguments."""
        allowed = self.tool_choice.functions
        return tuple(
            tool.callee(f"tools[{n}].function", forced=self.must_call)
            for n, tool in enumerate(self.offered_tools)
            if allowed is None or tool.name in allowed
        )

    @property
    def is_constrained(self) -> bool:
        """Whether it asks for something of the reply that only a grammar can hold, apart from a
        bound on the number of calls.
        """
        return (
            self.structure is not None
            or self.must_call
            or (self.tool_choice.mode is ToolMode.NONE and bool(self.tools or self.built_in))
            or self.tool_choice.functions is not None
            or any(tool.strict for tool in self.offered_tools)
        )


# What the model reads, and what it writes then, up to the id that stops it.
Turn = tuple[list[int], list[int]]


class Parser(Protocol):
    """Turns one completion's ids into events. Ids that stop the model may be pushed; none of them
    is shown.
    """

    @property
    def channel(self) -> Channel | None:
        """The channel of the text that the latest id is part of; None for markup and tool calls."""
        ...

    @property
    def malformed(self) -> bool:
        """Whether the reply so far breaks the rules of its format."""
        ...

    def push(self, id: int) -> list[Event]:
        """The events that `id` completes."""
        ...

    def finish(self) -> list[Event]:
        """The events still held back when the completion ends."""
        ...


class ChatFormat(Protocol):
    """How a model was taught to read a conversation, and to mark the parts of its reply."""

    @property
    def name(self) -> str:
        """'harmony', 'template' or 'plain'."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a reply."""
        ...

    def render(self, chat: Chat | Messages, /, **settings: Unpack[ChatSettings]) -> list[int]:
        """The prompt's ids, up to where the assistant's reply begins, of a Chat or of what
        `Chat.of` takes. Text in messages is ordinary text and never becomes a control token.

        Raises OssiaError for a chat that the format cannot express.
        """
        ...

    def render_turns(self, chat: Chat, only: Collection[int] | None = None, /) -> list[Turn]:
        """Each of the assistant's messages as the model is to write it, after the prompt that
        `render` makes of the messages before it; those at the indices `only`, if given. A format
        whose replies end with a tool call has a turn for each call.

        Raises OssiaError for a message that neither a prompt nor a reply of this format can hold.
        """
        ...

    def grammar(self, chat: Chat, prompt: Sequence[int], /) -> Grammar | None:
        """The form of the replies to `prompt`, which was rendered of `chat`; None if nothing is
        asked of them that the prompt cannot ask for.

        Raises OssiaError for what replies of this format cannot be held to.
        """
        ...

    def parser(
        self, prompt: Sequence[int] = (), tools: Sequence[ToolDescription] = (), /
    ) -> Parser:
        """A parser of a reply to `prompt`, where some templates begin the reply's reasoning, and
        which offers `tools`: their schemas give the types of arguments that are written as text.
        """
        ...


def _read_message(message: Any, tools: Collection[str], where: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise OssiaError(f"{where}: a message is an object with role and content, not {message!r}")
    role = message.get("role")
    if role == "function":  # a tool's role when there was one kind of tool
        role = Role.TOOL
    if role not in list(Role):
        raise OssiaError(f"{where}: role must be one of {', '.join(Role)}, not {role!r}")
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    name = optional_string(message.get("name"), f"{where}.name")
    return ChatMessage(
        role=Role(role),
        content=_read_content(message.get("content"), f"{where}.content"),
        name=bare_name(name, tools) if name and role == Role.TOOL else name,
        reasoning=optional_string(reasoning, f"{where}.reasoning"),
        tool_calls=_read_tool_calls(message, tools, where),
        tool_call_id=optional_string(message.get("tool_call_id"), f"{where}.tool_call_id"),
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


def _read_tool_calls(
    message: Mapping[str, Any], tools: Collection[str], where: str
) -> tuple[ToolCall, ...]:
    calls, only = message.get("tool_calls") or (), message.get("function_call")
    if only is not None:  # the one call of a message before there were several
        if calls:
            raise OssiaError(f"{where}: has both tool_calls and function_call; give tool_calls")
        return (_read_tool_call(only, tools, f"{where}.function_call"),)
    if isinstance(calls, str | Mapping) or not isinstance(calls, Iterable):
        raise OssiaError(f"{where}.tool_calls: must be a list of calls, not {calls!r}")
    return tuple(
        _read_tool_call(call, tools, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)
    )


def _read_tool_call(call: Any, tools: Collection[str], where: str) -> ToolCall:
    written = call_of(call)
    if written is None:
        raise OssiaError(f"{where}: needs a function with a name and arguments")
    name, arguments = written
    source = arguments if isinstance(arguments, Mapping) else None
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    id = optional_string(call.get("id"), f"{where}.id")
    return ToolCall(bare_name(name, tools), arguments, id, source)


def call_of(value: Any) -> tuple[str, Any] | None:
    """Name and arguments of a call in Chat Completions' form, or in one that models write: without
    `function` around them, or with `parameters` for `arguments`. None if it is no call.
    """
    if not isinstance(value, Mapping):
        return None
    function = value.get("function")
    function = function if isinstance(function, Mapping) else value
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        return None
    return name, function.get("parameters") if arguments is None else arguments


def bare_name(name: str, tools: Collection[str]) -> str:
    """A function's name without the namespace that harmony puts before it."""
    return name if name in tools else name.removeprefix(_NAMESPACE) or name


def read_effort(effort: Any, name: str = "reasoning_effort") -> Effort | None:
    """The effort that this says. Raises OssiaError, about what the user calls `name`, if there is
    none.
    """
    if effort is not None and effort not in list(Effort):
        raise OssiaError(f"{name} must be one of {', '.join(Effort)}, not {effort!r}")
    return effort and Effort(effort)


def _read_date(date: Any) -> datetime.date | None:
    try:
        return None if date is None else datetime.date.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise OssiaError(f"date must be YYYY-MM-DD, not {date!r}") from error
