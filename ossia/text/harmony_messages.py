"""Harmony's messages, and the rules by which a Chat Completions conversation becomes a list of
them.

Harmony is the format of gpt-oss: https://github.com/openai/harmony/blob/main/docs/format.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ossia.errors import OssiaError
from ossia.text.chat import ChatMessage, read_messages, read_reasoning_effort, read_tools

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
CHANNELS = ("analysis", "commentary", "final")
FUNCTIONS = "functions"  # the namespace of the user's tools
JSON_ARGUMENTS = "<|constrain|>json"


class Role(StrEnum):
    """Who wrote a message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class ToolDescription:
    """A function as the model sees it; `parameters` is its JSON schema, None without."""

    name: str
    description: str = ""
    parameters: Any = None


@dataclass(frozen=True)
class ToolNamespace:
    """Tools under one name. A namespace without functions (python) is described in prose alone."""

    name: str
    description: str | None = None
    tools: tuple[ToolDescription, ...] = ()


@dataclass(frozen=True)
class SystemContent:
    """The first message: who the model is, the day, the effort. None leaves a line out."""

    identity: str | None = IDENTITY
    reasoning_effort: str | None = "medium"
    date: str | None = None
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    channels: tuple[str, ...] = CHANNELS
    channel_required: bool = True
    tools: tuple[ToolNamespace, ...] = ()


@dataclass(frozen=True)
class DeveloperContent:
    """What others call the system prompt, and the tools that the developer offers."""

    instructions: str | None = None
    tools: tuple[ToolNamespace, ...] = ()


Content = str | SystemContent | DeveloperContent


@dataclass(frozen=True)
class Message:
    """One message with its header. A tool message's `name` is the tool's ('functions.weather').

    `content_type` holds the marker where the model constrains itself: '<|constrain|>json'.
    """

    role: Role
    content: tuple[Content, ...] = ()
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


def has_function_tools(messages: Sequence[Message]) -> bool:
    """Whether functions are offered: the system message then says where calls to them go."""
    return any(
        namespace.name == FUNCTIONS and namespace.tools
        for message in messages
        for content in message.content
        if isinstance(content, DeveloperContent)
        for namespace in content.tools
    )


def from_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    reasoning_effort: str | None = None,
    date: str | None = None,
) -> list[Message]:
    """A Chat Completions conversation in harmony.

    A system message opens it. Leading `system` and `developer` messages become the instructions of
    one developer message, which also offers the tools; later ones stand where they are. Reasoning
    is dropped from every turn that ended in a final answer and kept in the turn that is still open,
    across its tool calls. Text beside tool calls is a preamble, on the commentary channel. Raises
    OssiaError for messages or tools that are not well-formed.
    """
    history = read_messages(messages)
    functions = tuple(
        ToolDescription(tool.name, tool.description, tool.parameters) for tool in read_tools(tools)
    )
    system = SystemContent(
        reasoning_effort=read_reasoning_effort(reasoning_effort) or "medium",
        date=date or datetime.date.today().isoformat(),
    )
    rendered = [Message(Role.SYSTEM, (system,))]

    leading = 0
    while leading < len(history) and history[leading].role in (Role.SYSTEM, Role.DEVELOPER):
        leading += 1
    instructions = "\n\n".join(message.content for message in history[:leading] if message.content)
    if instructions or functions:
        namespaces = (ToolNamespace(FUNCTIONS, tools=functions),) if functions else ()
        rendered.append(
            Message(Role.DEVELOPER, (DeveloperContent(instructions or None, namespaces),))
        )

    last_final = max((n for n, message in enumerate(history) if _is_final(message)), default=-1)
    unanswered: list[tuple[str | None, str]] = []  # ids and names of calls without a result yet
    for n, message in enumerate(history[leading:], start=leading):
        if message.role == Role.ASSISTANT:
            rendered += _assistant(message, keep_reasoning=n > last_final)
            unanswered += [(call.id, call.name) for call in message.tool_calls]
        elif message.role == Role.TOOL:
            rendered.append(_tool_result(message, unanswered, f"messages[{n}]"))
        elif message.role == Role.USER:
            rendered.append(Message(Role.USER, (message.content,), name=message.name))
        else:
            rendered.append(Message(Role.DEVELOPER, (DeveloperContent(message.content),)))
    return rendered


def from_reply(message: ChatMessage) -> list[Message]:
    """The harmony messages of an assistant's one, as the model writes them: with its reasoning."""
    return _assistant(message, keep_reasoning=True)


def _is_final(message: ChatMessage) -> bool:
    return message.role == Role.ASSISTANT and bool(message.content) and not message.tool_calls


def _assistant(message: ChatMessage, keep_reasoning: bool) -> list[Message]:
    """The harmony messages of one reply: analysis, then the answer, or a preamble and the calls."""
    replies = []
    if message.reasoning and keep_reasoning:
        replies.append(Message(Role.ASSISTANT, (message.reasoning,), channel="analysis"))
    if message.content:
        channel = "commentary" if message.tool_calls else "final"
        replies.append(Message(Role.ASSISTANT, (message.content,), channel=channel))
    for call in message.tool_calls:
        replies.append(
            Message(
                Role.ASSISTANT,
                (call.arguments,),
                channel="commentary",
                recipient=f"{FUNCTIONS}.{call.name}",
                content_type=JSON_ARGUMENTS,
            )
        )
    return replies


def _tool_result(
    message: ChatMessage, unanswered: list[tuple[str | None, str]], where: str
) -> Message:
    """A tool's result, signed with its call's name: found by id, else by name, else the oldest."""
    by_id = (
        call for call in unanswered if message.tool_call_id and call[0] == message.tool_call_id
    )
    by_name = (call for call in unanswered if call[1] == message.name)
    call = next(by_id, None) or next(by_name, None)
    if call is None and message.tool_call_id is None and message.name is None:
        call = next(iter(unanswered), None)
    if call is not None:
        unanswered.remove(call)
    name = call[1] if call else message.name
    if name is None:
        raise OssiaError(
            f"{where}: answers no tool call: no open call before it has the id "
            f"{message.tool_call_id!r}"
        )
    return Message(
        Role.TOOL,
        (message.content,),
        name=f"{FUNCTIONS}.{name}",
        channel="commentary",
        recipient=str(Role.ASSISTANT),
    )
