"""JSON schemas before they are compiled: bounded in size, and without what would be read wrongly.

What llguidance cannot enforce it refuses itself; `place_of` finds where a schema has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ossia.errors import OssiaError

JsonSchema = Mapping[str, Any]

MAX_BYTES = 1 << 19  # of the schema as JSON
MAX_DEPTH = 100  # of values in one another; llguidance's reader of JSON stops at 128
MAX_PROPERTIES = 1000  # of one object: each optional one is a branch of the parser
# Regular expressions are compared with one another, in milliseconds to a second a pair.
MAX_PATTERNS = 64
MAX_PATTERN_PROPERTIES = 32
# The time that llguidance takes for strings that match several at once doubles with each.
MAX_COMBINED = 12

_DRAFTS = re.compile(
    r"https?://json-schema\.org/(draft-0[467]|draft/2019-09|draft/2020-12)/schema#?"
)

# Characters that JSON writes as \\uXXXX, which `compile` does not allow: llguidance would leave
# them out of the strings that it matches.
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_CONTROL_ESCAPE = re.compile(_CONTROL.pattern + r"|\\(?:x[01{]|x7[fF]|u\{?00[017]|[ace0v])")

# Where a schema has schemas: one, a list of them, or an object of them by name.
_ONE = (
    *(
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
    ),
    *("not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_LISTS = ["allOf", "anyOf", "items", "oneOf", "prefixItems"]
_NAMED = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"]
_IN_PLACE = ("$ref", "anyOf", "oneOf", "if", "not", "dependentSchemas")  # of the same value


def check_schema(schema: Any, where: str, *, strict: bool) -> None:
    """Raise OssiaError for a schema that is too large, or whose minProperties could be met by
    repeating a name, which a grammar cannot prevent.
    """
    _check_depth(schema, where)
    try:
        size = len(json.dumps(schema))
    except (TypeError, ValueError) as error:
        raise OssiaError(f"{where}: is not JSON ({error})") from error
    if size > MAX_BYTES:
        raise OssiaError(f"{where}: is {size} bytes, more than {MAX_BYTES}")
    patterns, combined = 0, ""
    for path, part in _schemas(schema, where):
        if not combined and _combines(part):
            combined = path
        found = part.get("patternProperties")
        several = len(found) if isinstance(found, Mapping) else 0
        patterns += several + ("pattern" in part) + ("format" in part)
        if several > MAX_PATTERN_PROPERTIES or patterns > MAX_PATTERNS:
            raise OssiaError(
                f"{path}: more than {MAX_PATTERN_PROPERTIES} patternProperties in an object, or "
                f"{MAX_PATTERNS} patterns and formats in a schema"
            )
        if combined and patterns > MAX_COMBINED:
            raise OssiaError(
                f"{combined}: combines schemas, so there may be {MAX_COMBINED} patterns and "
                "formats in all"
            )
        properties = part.get("properties")
        if isinstance(properties, Mapping) and len(properties) > MAX_PROPERTIES:
            raise OssiaError(f"{path}.properties: more than {MAX_PROPERTIES}")
        _check_characters(part, path)
        if strict:
            _check_draft(part, path)
            _check_names(part, path)


def _combines(schema: JsonSchema) -> bool:
    """Whether a value has to follow several parts of a schema at once."""
    every = schema.get("allOf")
    parts = len(every) if isinstance(every, list) else 0
    parts += "pattern" in schema or "format" in schema
    return parts + sum(key in schema for key in _IN_PLACE) > 1


def place_of(keyword: str, schema: Any, where: str) -> str:
    """The path to the first schema that has a keyword; `where` if there is none."""
    paths = (path for path, part in _schemas(schema, where) if keyword in part)
    return next(paths, where)


def _check_characters(schema: JsonSchema, path: str) -> None:
    for key, pattern in (("const", _CONTROL), ("enum", _CONTROL), ("pattern", _CONTROL_ESCAPE)):
        if key in schema and any(map(pattern.search, _strings(schema[key]))):
            raise OssiaError(f"{path}.{key}: control characters in strings cannot be enforced")
    named = schema.get("patternProperties")
    if isinstance(named, Mapping) and any(map(_CONTROL_ESCAPE.search, named)):
        raise OssiaError(f"{path}.patternProperties: control characters cannot be enforced")


def _check_draft(schema: JsonSchema, path: str) -> None:
    draft = schema.get("$schema")
    if draft is not None and (not isinstance(draft, str) or not _DRAFTS.fullmatch(draft)):
        raise OssiaError(f"{path}.$schema: {draft!r} is none of the drafts 4 to 2020-12")


def _check_names(schema: JsonSchema, path: str) -> None:
    least, required = schema.get("minProperties"), schema.get("required")
    names = len(required) if isinstance(required, list) else 0
    if isinstance(least, int) and least > names + 1:
        raise OssiaError(
            f"{path}.minProperties: cannot be enforced beyond the required properties and one more"
        )


def _check_depth(value: Any, where: str) -> None:
    """Raise OssiaError for values nested too deeply, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            item
            for outer in level
            if isinstance(outer, Mapping | list | tuple)
            for item in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    if level:
        raise OssiaError(f"{where}: is nested more than {MAX_DEPTH} levels deep")


def _strings(value: Any) -> Iterator[str]:
    """The strings in a value, names of properties aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _schemas(schema: Any, path: str) -> Iterator[tuple[str, JsonSchema]]:
    """A schema and all schemas in it, each with its path."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for key in _ONE:
        if isinstance(schema.get(key), Mapping):
            yield from _schemas(schema[key], f"{path}.{key}")
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            for n, item in enumerate(schema[key]):
                yield from _schemas(item, f"{path}.{key}[{n}]")
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            for name, item in schema[key].items():
                yield from _schemas(item, f"{path}.{key}.{name}")
