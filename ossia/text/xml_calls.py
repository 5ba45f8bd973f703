"""Calls in Qwen3-Coder's tags as rules of a grammar: what `calls.FunctionCall` reads.

A parameter's value is written as text, so of a schema only what text can hold to is enforced: the
names, their order, which are required, and values by type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ossia.errors import OssiaError
from ossia.text.asked import Callee
from ossia.text.calls import types_of
from ossia.text.constrain.grammar import Grammar, literal
from ossia.text.constrain.structure import Kind, Structure

_TAGS = re.compile(r"</parameter>|<parameter=|</function>")
_NAME = re.compile(r"[^<>\s]+")
_NOTES = {"title", "description", "default", "examples", "$schema", "$defs", "definitions"}
_OBJECT = {"type", "properties", "required", "additionalProperties", *_NOTES}
_NUMBER = r"-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?"  # `calls.typed` reads no longer exponents


def text_rule(grammar: Grammar) -> str:
    """Text beside calls, in which no call begins without its tag."""
    grammar.rules["SAID"] = r"/(?s:.*)/ & ~/(?s:.*)<function=(?s:.*)/"
    return "SAID"


def call_rule(grammar: Grammar, n: int, callee: Callee) -> str:
    """The body of a call. Raises OssiaError for a part of a strict schema that cannot be held."""
    if not _NAME.fullmatch(callee.name):
        raise OssiaError(f"{callee.where}.name: {callee.name!r} is no name in this model's tags")
    grammar.rules["FREE"] = r"/(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<parameter=|<\/function>)(?s:.*)/"
    grammar.rules["VALUE"] = f"FREE {literal(chr(10) + '</parameter>')}"
    grammar.rules["value[lazy]"] = "VALUE"
    schema, strict = callee.arguments.value, callee.arguments.strict
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        head = literal("<parameter=")
        written = f'({head} /[A-Za-z_][A-Za-z0-9_.-]*/ {literal(">" + chr(10))} value "\\n")*'
        if schema.get("additionalProperties") is False:
            written = ""
    else:
        _refuse(schema, _OBJECT, callee.arguments.where, strict)
        parameters = [
            _parameter(grammar, f"call_{n}_{m}", key, callee.arguments)
            for m, key in enumerate(properties)
        ]
        written = " ".join(parameters)
    head, end = literal(f"\n<function={callee.name}>\n"), literal("</function>\n")
    return grammar.rule(f"call_{n}", f"{head} {written} {end}")


def _parameter(grammar: Grammar, name: str, key: str, arguments: Structure) -> str:
    """A reference to a parameter, with a mark if it may be absent."""
    if not _NAME.fullmatch(key):
        raise OssiaError(f"{arguments.where}.properties: {key!r} is no name in this model's tags")
    head = literal(f"<parameter={key}>\n")
    grammar.rule(name, f'{head} {_value(grammar, key, arguments)} "\\n"')
    return name if key in arguments.value.get("required", ()) else f"{name}?"


def _value(grammar: Grammar, key: str, arguments: Structure) -> str:
    """A value and the end of its tag."""
    schema: Any = arguments.value["properties"][key]
    where = f"{arguments.where}.properties.{key}"
    end = literal("\n</parameter>")
    types = types_of(schema)
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if types == {"string"} and isinstance(choices, list):
        _refuse(schema, {"type", "enum", "const", *_NOTES}, where, arguments.strict)
        texts = tuple(choice for choice in choices if isinstance(choice, str))
        if not texts or any(map(_TAGS.search, texts)):
            raise OssiaError(f"{where}: has no value that this model's tags can hold")
        return f"{grammar.text_of(Structure(Kind.CHOICE, texts, where))} {end}"
    if not types or "string" in types:
        _refuse(schema, {"type", *_NOTES}, where, arguments.strict)
        if arguments.strict and types not in ({"string"}, {"string", "null"}):
            raise OssiaError(f"{where}: needs a type that text can be, for this model's tags")
        return "value"
    if "number" in types and not schema.keys() & {"minimum", "maximum"}:
        _refuse(schema, {"type", *_NOTES}, where, arguments.strict)
        return f"{grammar.text_of(Structure(Kind.REGEX, _NUMBER, where))} {end}"
    shared = {k: arguments.value[k] for k in ("$defs", "definitions") if k in arguments.value}
    structure = Structure(Kind.JSON, {**shared, **schema}, where, arguments.strict)
    return f"{grammar.text_of(structure)} {end}"


def _refuse(schema: Any, known: set[str], where: str, strict: bool) -> None:
    """Raise OssiaError for keywords that values in tags cannot be held to."""
    unknown = sorted(schema.keys() - known) if strict and isinstance(schema, Mapping) else []
    if unknown:
        raise OssiaError(f"{where}: {unknown[0]} cannot be enforced in this model's tags")
