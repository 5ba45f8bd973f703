"""JSON schemas in harmony's TypeScript-like notation, as openai_harmony writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def typescript(schema: Any, indent: str = "") -> str:
    """A JSON schema in TypeScript-like notation; `any` where there is no notation for it."""
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
    """The lines of one property: comments, then `name: type, // default`."""
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
    """A property of several types, each on a line of its own. No description is repeated."""
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
    """'default: value'; None without a default. Strings are quoted, except those of enums."""
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
