"""A chat as formats render it, checked once when it is made, and the protocols of a chat format."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from ossia.errors import OssiaError
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


class ToolMode(StrEnum):
    """Whether a reply may call tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


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


@dataclass(frozen=True)
class ToolDescription:
    """A function that the model may call, as the model sees it.

    `parameters` is a JSON schema, None for a function without parameters. `source` is the
    description in the form in which the user gave it, which chat templates print.
    """

    name: str
    description: str = ""
    parameters: Any = None
    source: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> Mapping[str, Any]:
        """The description in Chat Completions' form."""
        if self.source is not None:
            return self.source
        function = {"name": self.name, "description": self.description}
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolChoice:
    """Whether a reply may or must call tools; with `function`, it must call that one."""

    mode: ToolMode = ToolMode.AUTO
    function: str | None = None


@dataclass(frozen=True)
class ResponseFormat:
    """The JSON schema that the answer is to follow. `strict`: the caller relies on it."""

    name: str
    schema: dict[str, Any]
    description: str = ""
    strict: bool = False


Messages = Sequence[Mapping[str, Any]]


class ChatSettings(TypedDict, total=False):
    """What a chat may set beside its messages, in the form of Chat Completions; None is the
    default.

    reasoning_effort: "low", "medium" or "high"; the model's own default if None. thinking: False
    for an answer without reasoning, from models that can. date: YYYY-MM-DD, for prompts that name
    the day; today if None. instructions: what the developer asks for, before all messages.
    built_in: tools that a model was trained to call within its reasoning, which only harmony has.
    """

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
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
    tool_choice: ToolChoice = ToolChoice()
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    thinking: bool = True
    date: datetime.date | None = None
    instructions: str | None = None
    built_in: tuple[ToolNamespace, ...] = ()

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
        tools = _read_tools(settings.get("tools"))
        names = frozenset(tool.name for tool in tools)
        return cls(
            messages=tuple(
                _read_message(message, names, f"messages[{n}]")
                for n, message in enumerate(messages)
            ),
            tools=tools,
            tool_choice=_read_tool_choice(settings.get("tool_choice"), tools),
            response_format=_read_response_format(settings.get("response_format")),
            reasoning_effort=read_effort(settings.get("reasoning_effort")),
            thinking=settings.get("thinking", True),
            date=_read_date(settings.get("date")),
            instructions=_optional_string(settings.get("instructions"), "instructions"),
            built_in=tuple(settings.get("built_in", ())),
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

    def refuse_unenforceable(self) -> None:
        """Raise OssiaError for what the caller relies on and a prompt can only ask for."""
        if self.tool_choice.function is not None:
            asked = f"tool_choice: a call of {self.tool_choice.function!r}"
        elif self.tool_choice.mode is ToolMode.REQUIRED:
            asked = 'tool_choice "required": a call'
        elif self.response_format is not None and self.response_format.strict:
            asked = "response_format.json_schema.strict: the schema"
        else:
            return
        raise OssiaError(
            f"{asked} cannot be enforced: ossia has no constrained decoding yet; leave it out and "
            "check the reply"
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
    name = _optional_string(message.get("name"), f"{where}.name")
    return ChatMessage(
        role=Role(role),
        content=_read_content(message.get("content"), f"{where}.content"),
        name=bare_name(name, tools) if name and role == Role.TOOL else name,
        reasoning=_optional_string(reasoning, f"{where}.reasoning"),
        tool_calls=_read_tool_calls(message, tools, where),
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
    id = _optional_string(call.get("id"), f"{where}.id")
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


def _optional_string(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise OssiaError(f"{where}: must be a string, not {value!r}")
    return value


def _read_tools(tools: Any) -> tuple[ToolDescription, ...]:
    if tools is not None and (isinstance(tools, str | Mapping) or not isinstance(tools, Iterable)):
        raise OssiaError(f"tools: must be a list of functions, not {tools!r}")
    return tuple(_read_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools or ()))


def _read_tool(tool: Any, where: str) -> ToolDescription:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if function is None and isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
        function = {key: value for key, value in tool.items() if key != "type"}
        tool = {"type": "function", "function": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise OssiaError(f"{where}: needs type 'function' and a function with a name")
    description = _optional_string(function.get("description"), f"{where}.function.description")
    return ToolDescription(function["name"], description or "", function.get("parameters"), tool)


def _read_tool_choice(choice: Any, tools: Sequence[ToolDescription]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise OssiaError(
                "tool_choice: must be a string, or an object with type 'function' and the "
                f"function's name, not {choice!r}"
            )
        if name not in [tool.name for tool in tools]:
            raise OssiaError(f"tool_choice: there is no tool {name!r}")
        return ToolChoice(ToolMode.REQUIRED, name)
    if choice not in list(ToolMode):
        raise OssiaError(
            f"tool_choice: must be {', '.join(ToolMode)} or a function, not {choice!r}"
        )
    if choice == ToolMode.REQUIRED and not tools:
        raise OssiaError('tool_choice "required": there are no tools to call')
    return ToolChoice(ToolMode(choice))


def _read_response_format(value: Any) -> ResponseFormat | None:
    match value:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ResponseFormat("json_object", {"type": "object"})
        case {"type": "json_schema", "json_schema": Mapping() as schema}:
            return _read_json_schema(schema, "response_format.json_schema")
    raise OssiaError(
        "response_format: must be an object with type text, json_object, or json_schema and a "
        f"json_schema, not {value!r}"
    )


def _read_json_schema(given: Mapping[str, Any], where: str) -> ResponseFormat:
    name, schema = given.get("name"), given.get("schema", {})
    if not isinstance(name, str):
        raise OssiaError(f"{where}: needs a name")
    if not isinstance(schema, dict):
        raise OssiaError(f"{where}.schema: must be a JSON schema, not {schema!r}")
    description = _optional_string(given.get("description"), f"{where}.description")
    return ResponseFormat(name, schema, description or "", given.get("strict") is True)


def read_effort(effort: Any) -> Effort | None:
    """The effort of that name. Raises OssiaError if there is none."""
    if effort is not None and effort not in list(Effort):
        raise OssiaError(f"reasoning_effort must be one of {', '.join(Effort)}, not {effort!r}")
    return effort and Effort(effort)


def _read_date(date: Any) -> datetime.date | None:
    try:
        return None if date is None else datetime.date.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise OssiaError(f"date must be YYYY-MM-DD, not {date!r}") from error
