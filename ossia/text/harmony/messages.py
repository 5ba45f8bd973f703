"""Harmony's messages, and the rules by which a chat becomes a list of them."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ossia.errors import OssiaError
from ossia.text.chat import (
    Chat,
    ChatMessage,
    Effort,
    ResponseFormat,
    Role,
    ToolDescription,
)
from ossia.text.harmony.grammar import CHANNELS, FUNCTIONS, ControlToken, Header

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
BUILT_IN_ARGUMENTS = "code"  # the type of what models write to built-in tools
JSON_ARGUMENTS = f"{ControlToken.CONSTRAIN}json"


@dataclass(frozen=True)
class ToolNamespace:
    """Tools under one name. A namespace without functions (python) is described in prose alone."""

    name: str
    description: str | None = None
    tools: tuple[ToolDescription, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The recipients of its calls."""
        return tuple(f"{self.name}.{tool.name}" for tool in self.tools) or (self.name,)


@dataclass(frozen=True)
class SystemContent:
    """The first message: who the model is, the day, the effort. None leaves a line out."""

    identity: str | None = IDENTITY
    reasoning_effort: str | None = Effort.MEDIUM
    date: str | None = None
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    channels: tuple[str, ...] = tuple(CHANNELS)
    channel_required: bool = True
    tools: tuple[ToolNamespace, ...] = ()


@dataclass(frozen=True)
class DeveloperContent:
    """What other formats call the system prompt, the developer's tools, and the answer's schema."""

    instructions: str | None = None
    tools: tuple[ToolNamespace, ...] = ()
    response_format: ResponseFormat | None = None


Content = str | SystemContent | DeveloperContent


@dataclass(frozen=True)
class Message(Header):
    """One message: its header and its content."""

    content: tuple[Content, ...] = ()


def has_function_tools(messages: Sequence[Message]) -> bool:
    """Whether functions are offered: the system message then says where calls to them go."""
    return any(
        namespace.name == FUNCTIONS and namespace.tools
        for message in messages
        for content in message.content
        if isinstance(content, DeveloperContent)
        for namespace in content.tools
    )


def from_chat(chat: Chat) -> list[Message]:
    """A chat in harmony, its last reply still to be written.

    Reasoning is dropped from every turn that ended in an answer and kept in the turn that is still
    open, across its tool calls. Raises OssiaError for a tool's result that belongs to no call.
    """
    last_answer = max((n for n, m in enumerate(chat.messages) if m.is_answer), default=-1)
    conversation = opening(chat)
    for n, messages in enumerate(translated(chat)):
        conversation += [m for m in messages if n > last_answer or is_kept(m)]
    return conversation


def opening(chat: Chat) -> list[Message]:
    """The system message, and the developer message if there is anything to say in it: the
    instructions, which leading `system` and `developer` messages continue, the tools, and the
    answer's schema.
    """
    effort = Effort.MEDIUM if chat.thinking else Effort.LOW
    date = chat.date or datetime.date.today()
    system = SystemContent(
        reasoning_effort=chat.reasoning_effort or effort,
        date=date.isoformat(),
        tools=chat.offered_built_in,
    )
    messages = [Message(Role.SYSTEM, content=(system,))]
    leading = [message.content for message in chat.messages[: _leading(chat)]]
    instructions = "\n\n".join(filter(None, [chat.instructions, *leading]))
    if instructions or chat.offered_tools or chat.response_format:
        functions = ToolNamespace(FUNCTIONS, tools=chat.offered_tools)
        developer = DeveloperContent(
            instructions or None,
            (functions,) if chat.offered_tools else (),
            chat.response_format,
        )
        messages.append(Message(Role.DEVELOPER, content=(developer,)))
    return messages


def translated(chat: Chat) -> list[list[Message]]:
    """The harmony messages of each of the chat's messages, reasoning included: none of those that
    `opening` holds, several of a reply.

    Text beside tool calls is a preamble, on the commentary channel; calls of built-in tools are
    part of the reasoning. Raises OssiaError for a tool's result that belongs to no call.
    """
    built_in = chat.built_in_names
    leading = _leading(chat)
    messages: list[list[Message]] = [[] for _ in range(leading)]
    unanswered: list[tuple[str | None, str]] = []  # ids and names of calls without a result yet
    for n, message in enumerate(chat.messages[leading:], start=leading):
        match message.role:
            case Role.ASSISTANT:
                messages.append(_reply(message, built_in))
                unanswered += [(call.id, call.name) for call in message.tool_calls]
            case Role.TOOL:
                name = _answered(message, unanswered, f"messages[{n}]")
                messages.append([_tool_result(message.content, name, built_in)])
            case Role.USER:
                messages.append([Message(Role.USER, message.name, content=(message.content,))])
            case Role.SYSTEM | Role.DEVELOPER:
                note = DeveloperContent(message.content)
                messages.append([Message(Role.DEVELOPER, content=(note,))])
    return messages


def is_kept(message: Message) -> bool:
    """Whether prompts repeat the message once its turn has been answered."""
    return message.channel != "analysis"


def _leading(chat: Chat) -> int:
    """How many messages stand before the first that is not the developer's."""
    notes = (Role.SYSTEM, Role.DEVELOPER)
    spoken = (n for n, message in enumerate(chat.messages) if message.role not in notes)
    return next(spoken, len(chat.messages))


def _reply(message: ChatMessage, built_in: Collection[str]) -> list[Message]:
    """A reply as the model writes it: analysis, then the answer, or a preamble and the calls."""
    replies = []
    if message.reasoning:
        replies.append(Message(Role.ASSISTANT, channel="analysis", content=(message.reasoning,)))
    if message.content:
        channel = "commentary" if message.tool_calls else "final"
        replies.append(Message(Role.ASSISTANT, channel=channel, content=(message.content,)))
    for call in message.tool_calls:
        is_built_in = call.name in built_in
        replies.append(
            Message(
                Role.ASSISTANT,
                channel=_channel_of(call.name, built_in),
                recipient=call.name if is_built_in else f"{FUNCTIONS}.{call.name}",
                content_type=BUILT_IN_ARGUMENTS if is_built_in else JSON_ARGUMENTS,
                content=(call.arguments,),
            )
        )
    return replies


def _channel_of(tool: str, built_in: Collection[str]) -> str:
    """The channel of a tool's calls and results."""
    return "analysis" if tool in built_in else "commentary"


def _tool_result(content: str, tool: str, built_in: Collection[str]) -> Message:
    """A tool's result, signed with its name."""
    return Message(
        Role.TOOL,
        name=tool if tool in built_in else f"{FUNCTIONS}.{tool}",
        channel=_channel_of(tool, built_in),
        recipient=str(Role.ASSISTANT),
        content=(content,),
    )


def _answered(message: ChatMessage, unanswered: list[tuple[str | None, str]], where: str) -> str:
    """The name of the call that a result belongs to: found by id, else by name, else the oldest."""
    by_id = (
        call for call in unanswered if message.tool_call_id and call[0] == message.tool_call_id
    )
    by_name = (call for call in unanswered if call[1] == message.name)
    call = next(by_id, None) or next(by_name, None)
    unnamed = message.tool_call_id is None or all(id is None for id, _ in unanswered)
    if call is None and unnamed and message.name is None:
        call = next(iter(unanswered), None)
    if call is not None:
        unanswered.remove(call)
    name = call[1] if call else message.name
    if name is None:
        raise OssiaError(
            f"{where}: answers no tool call: no open call before it has the id "
            f"{message.tool_call_id!r}"
        )
    return name
