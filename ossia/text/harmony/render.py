"""Harmony's messages as ids, the same that openai_harmony gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ossia.errors import OssiaError
from ossia.text.chat import ResponseFormat, Role
from ossia.text.harmony.grammar import ControlToken, write_header
from ossia.text.harmony.messages import (
    Content,
    DeveloperContent,
    Message,
    SystemContent,
    ToolNamespace,
    has_function_tools,
)
from ossia.text.harmony.schema import typescript
from ossia.text.tokenizer import Tokenizer


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, *, auto_drop_analysis: bool = True
) -> list[int]:
    """The ids of a stored conversation, in which every assistant message ends with <|end|> or
    <|call|>.

    `auto_drop_analysis` does what openai_harmony's does: when the last assistant message is a final
    answer, analysis before the first final answer is left out.
    """
    functions = has_function_tools(messages)
    if auto_drop_analysis:
        messages = _without_stale_analysis(messages)
    return [id for message in messages for id in _message(message, tokenizer, functions)]


def render_for_completion(
    messages: Sequence[Message], tokenizer: Tokenizer, *, auto_drop_analysis: bool = True
) -> list[int]:
    """The ids of a prompt: the conversation, then the beginning of the assistant's next message."""
    ids = render(messages, tokenizer, auto_drop_analysis=auto_drop_analysis)
    return [*ids, *reply_start(tokenizer)]


def reply_start(tokenizer: Tokenizer) -> list[int]:
    """The ids with which a prompt ends: the beginning of the assistant's message."""
    return [tokenizer.control[ControlToken.START], *tokenizer.encode(Role.ASSISTANT)]


def render_for_training(
    messages: Sequence[Message], tokenizer: Tokenizer, *, auto_drop_analysis: bool = True
) -> list[int]:
    """The ids of a conversation to learn from: a final answer at its end ends with <|return|>."""
    ids = render(messages, tokenizer, auto_drop_analysis=auto_drop_analysis)
    if messages and messages[-1].role == Role.ASSISTANT and messages[-1].channel == "final":
        ids[-1] = tokenizer.control[ControlToken.RETURN]
    return ids


def contents(messages: Sequence[Message]) -> list[str]:
    """The contents of the messages, without their headers, as `render` encodes them."""
    functions = has_function_tools(messages)
    return [_text(content, functions) for message in messages for content in message.content]


def _without_stale_analysis(messages: Sequence[Message]) -> Sequence[Message]:
    spoken = [message for message in messages if message.role == Role.ASSISTANT]
    if not spoken or spoken[-1].channel != "final":
        return messages
    first_final = next(n for n, message in enumerate(messages) if message.channel == "final")
    return [
        message
        for n, message in enumerate(messages)
        if n > first_final or message.channel != "analysis"
    ]


def _message(message: Message, tokenizer: Tokenizer, functions: bool) -> list[int]:
    """One message's ids. As in openai_harmony its pieces are encoded one by one."""
    ids: list[int] = []
    for piece in write_header(message):
        if isinstance(piece, ControlToken):
            ids.append(tokenizer.control[piece])
        else:
            ids += tokenizer.encode(piece)
    for content in message.content:
        ids += tokenizer.encode(_text(content, functions))
    end = ControlToken.END if message.end is ControlToken.RETURN else message.end
    return [*ids, tokenizer.control[end]]


def _text(content: Content, functions: bool) -> str:
    match content:
        case SystemContent():
            return "\n\n".join(_system_sections(content, functions))
        case DeveloperContent():
            sections = []
            if content.instructions is not None:
                sections += ["# Instructions", content.instructions]
            if content.tools:
                sections.append(_tools_section(content.tools))
            if content.response_format is not None:
                sections.append(_response_format_section(content.response_format))
            return "\n\n".join(sections)
        case str():
            return content


def _system_sections(content: SystemContent, functions: bool) -> Iterable[str]:
    about = []
    if content.identity is not None:
        about.append(content.identity)
    if content.knowledge_cutoff is not None:
        about.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.date is not None:
        about.append(f"Current date: {content.date}")
    if about:
        yield "\n".join(about)
    if content.reasoning_effort is not None:
        yield f"Reasoning: {content.reasoning_effort}"
    if content.tools:
        yield _tools_section(content.tools)
    if content.channels:
        line = f"# Valid channels: {', '.join(content.channels)}."
        if content.channel_required:
            line += " Channel must be included for every message."
        if functions:
            line += "\nCalls to these tools must go to the commentary channel: 'functions'."
        yield line


def _tools_section(namespaces: Iterable[ToolNamespace]) -> str:
    ordered = sorted(namespaces, key=lambda namespace: namespace.name)
    return "\n\n".join(["# Tools", *map(_namespace, ordered)])


def _namespace(namespace: ToolNamespace) -> str:
    lines = [f"## {namespace.name}\n"]
    comment = "// " if namespace.tools else ""
    lines += [comment + line for line in _lines(namespace.description or "")]
    if namespace.tools:
        lines.append(f"namespace {namespace.name} {{\n")
        for tool in namespace.tools:
            lines += [f"// {line}" for line in _lines(tool.description)]
            lines.append(f"type {tool.name} = ({_argument(tool.parameters)}) => any;\n")
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _argument(parameters: Any) -> str:
    if parameters is None:
        return ""
    try:
        return f"_: {typescript(parameters)}"
    except RecursionError as error:
        raise OssiaError("tools: nested too deeply") from error


def _response_format_section(response_format: ResponseFormat) -> str:
    """The schema of the answer, as format.md of openai/harmony has it under "Structured output"."""
    lines = [f"# Response Formats\n\n## {response_format.name}\n"]
    lines += [f"// {line}" for line in _lines(response_format.description)]
    lines.append(json.dumps(response_format.schema, ensure_ascii=False, separators=(",", ":")))
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    """The lines of a text. Only \\n and \\r\\n end one; `str.splitlines` would split at more."""
    lines = re.split(r"\r?\n", text)
    return lines if lines[-1] else lines[:-1]
