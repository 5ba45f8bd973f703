"""Harmony messages to openai_harmony's ids, through any vocabulary with its control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ossia.text.harmony_messages import (
    Content,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    ToolNamespace,
    has_function_tools,
)
from ossia.text.tokenizer import Tokenizer

CONTROL_TOKENS = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
)


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
    return [*ids, tokenizer.control["<|start|>"], *tokenizer.encode(Role.ASSISTANT)]


def render_for_training(
    messages: Sequence[Message], tokenizer: Tokenizer, *, auto_drop_analysis: bool = True
) -> list[int]:
    """The ids of a conversation to learn from: a final answer at its end ends with <|return|>."""
    ids = render(messages, tokenizer, auto_drop_analysis=auto_drop_analysis)
    if messages and messages[-1].role == Role.ASSISTANT and messages[-1].channel == "final":
        ids[-1] = tokenizer.control["<|return|>"]
    return ids


def contents(messages: Sequence[Message]) -> list[str]:
    """What the messages say, without headers, as `render` encodes it."""
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
    """One message's ids. As in the reference its parts are encoded one by one."""
    control, encode = tokenizer.control, tokenizer.encode
    if message.role == Role.TOOL:
        assert message.name, "a tool message needs the tool's name"
        ids = [control["<|start|>"], *encode(message.name)]
    else:
        ids = [control["<|start|>"], *encode(message.role)]
        if message.name is not None:
            ids += encode(f":{message.name}")
    if message.recipient is not None and message.recipient != "all":
        ids += encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [control["<|channel|>"], *encode(message.channel)]
    if message.content_type is not None:
        constrained = message.content_type.removeprefix("<|constrain|>")
        if constrained != message.content_type:
            ids += [*encode(" "), control["<|constrain|>"], *encode(constrained)]
        else:
            ids += encode(f" {message.content_type}")
    ids.append(control["<|message|>"])
    for content in message.content:
        ids += encode(_text(content, functions))
    calls_a_tool = message.role == Role.ASSISTANT and message.recipient is not None
    return [*ids, control["<|call|>" if calls_a_tool else "<|end|>"]]


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
            argument = "" if tool.parameters is None else f"_: {typescript(tool.parameters)}"
            lines.append(f"type {tool.name} = ({argument}) => any;\n")
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    """Lines end with \\n or \\r\\n alone; `str.splitlines` knows more ends than harmony does."""
    lines = re.split(r"\r?\n", text)
    return lines if lines[-1] else lines[:-1]


def typescript(schema: Any, indent: str = "") -> str:
    """A JSON schema in harmony's TypeScript-like notation; what it has no notation for is `any`."""
    if not isinstance(schema, dict):
        return "any"
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join(f"\n{indent} | {_variant(variant, indent)}" for variant in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in _strings(kind)]
        return " | ".join(names) or "any"
    match kind:
        case "object":
            return _object(schema, indent)
        case "string":
            return " | ".join(f'"{value}"' for value in _strings(schema.get("enum"))) or "string"
        case "number" | "integer":
            return "number"
        case "boolean":
            return "boolean"
        case "array" if "items" in schema:
            return f"{typescript(schema['items'], indent)}[]"
        case "array":
            return "Array<any>"
    return "any"


def _object(schema: dict[str, Any], indent: str) -> str:
    lines = []
    if (description := _string(schema, "description")) is not None:
        lines.append(f"{indent}// {description}")
    lines.append("{")
    properties = schema.get("properties")
    required = _strings(schema.get("required"))
    for name, value in properties.items() if isinstance(properties, dict) else ():
        optional = "" if name in required else "?"
        lines += _property(f"{indent}{name}{optional}:", value, indent)
    lines.append(f"{indent}}}")
    return "\n".join(lines)


def _property(head: str, schema: Any, indent: str) -> Iterable[str]:
    """The lines of one property: what is said about it, then `name: type, // default`."""
    schema = schema if isinstance(schema, dict) else {}
    if (title := _string(schema, "title")) is not None:
        yield f"{indent}// {title}\n{indent}//"
    if "oneOf" not in schema and (description := _string(schema, "description")) is not None:
        yield f"{indent}// {description}"
    if isinstance(examples := schema.get("examples"), list) and examples:
        yield f"{indent}// Examples:"
        yield from (f'{indent}// - "{example}"' for example in _strings(examples))
    if isinstance(variants := schema.get("oneOf"), list):
        yield from _union_property(head, schema, variants, indent)
    else:
        default = None if "oneOf" in schema else _default(schema)
        yield f"{head} {_nullable(schema, indent + '    ')},{_trailing(default)}"


def _union_property(
    head: str, schema: dict[str, Any], variants: list[Any], indent: str
) -> Iterable[str]:
    """A property that is one of several types, a line each; its description is not said twice."""
    description = _string(schema, "description")
    first = _string(variants[0], "description") if variants else None
    described = description is not None and description != first
    if described:
        yield f"{indent}// {description}"
    if (default := _default(schema)) is not None:
        yield f"{indent}// {default}"
    yield head
    for n, variant in enumerate(variants):
        comment = _string(variant, "description")
        if (n == 0 and described) or comment == description:
            comment = None
        comments = _trailing(comment, _default(variant))
        yield f"{indent} | {_nullable(variant, indent + '   ')}{comments}"
    yield f"{indent},"


def _variant(schema: Any, indent: str) -> str:
    comments = _trailing(_string(schema, "description"), _default(schema, quote_enum=True))
    return _nullable(schema, indent + "   ") + comments


def _trailing(*comments: str | None) -> str:
    present = [comment for comment in comments if comment is not None]
    return f" // {' '.join(present)}" if present else ""


def _nullable(schema: Any, indent: str) -> str:
    text = typescript(schema, indent)
    if isinstance(schema, dict) and schema.get("nullable") is True and "null" not in text:
        text += " | null"
    return text


def _default(schema: Any, quote_enum: bool = False) -> str | None:
    """'default: value', None if there is none. A string is quoted unless it is one of an enum's."""
    if not isinstance(schema, dict) or "default" not in schema:
        return None
    default = schema["default"]
    if not isinstance(default, str):
        return f"default: {json.dumps(default, ensure_ascii=False, separators=(',', ':'))}"
    is_enum = isinstance(schema.get("enum"), list) and schema["enum"]
    if not is_enum:
        return f'default: "{default}"'
    return f"default: {json.dumps(default, ensure_ascii=False) if quote_enum else default}"


def _string(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, str) else None


def _strings(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
