"""What is asked of a reply beside words: the functions that it may call, and the answer's form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ossia.errors import OssiaError
from ossia.text.constrain.structure import ANY_OBJECT, Kind, Structure

NO_PARAMETERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
_FORMAT, _OBJECT = "response_format.json_schema", "json_object"


class ToolMode(StrEnum):
    """Whether a reply may call tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class Callee:
    """A function that a reply may call, and the form of its arguments. where: the parameter that
    describes it.
    """

    name: str
    arguments: Structure
    where: str


@dataclass(frozen=True)
class ToolDescription:
    """A function that the model may call, as the model sees it.

    `parameters` is a JSON schema, None for a function without parameters. `strict`: calls are to
    follow it whenever there are any. `source` is the description in the form in which the user gave
    it, which chat templates print.
    """

    name: str
    description: str = ""
    parameters: Any = None
    strict: bool = False
    source: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> Mapping[str, Any]:
        """The description in Chat Completions' form."""
        if self.source is not None:
            return self.source
        function = {"name": self.name, "description": self.description}
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}

    def callee(self, where: str, *, forced: bool) -> Callee:
        """How calls of it are written. Calls that are not forced are free in their arguments unless
        it is strict. Raises OssiaError for parameters that are not an object.
        """
        if not (self.strict or forced):
            return Callee(self.name, Structure(Kind.JSON, ANY_OBJECT, where), where)
        where_parameters = f"{where}.parameters"
        schema = NO_PARAMETERS if self.parameters is None else self.parameters
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise OssiaError(f"{where_parameters}: must be a JSON schema of type object")
        schema = {"type": "object", **schema}
        structure = Structure(Kind.JSON, schema, where_parameters, self.strict)
        return Callee(self.name, structure, where)


@dataclass(frozen=True)
class ToolChoice:
    """Whether a reply may or must call tools; `functions`: only these of them."""

    mode: ToolMode = ToolMode.AUTO
    functions: tuple[str, ...] | None = None


ANY_CHOICE = ToolChoice()


@dataclass(frozen=True)
class ResponseFormat:
    """The JSON schema that the answer follows. `strict`: all of it is enforced, or refused."""

    name: str
    schema: dict[str, Any]
    description: str = ""
    strict: bool = False

    @property
    def structure(self) -> Structure:
        """The answer's form. Raises OssiaError for a schema that is too large."""
        where = "response_format" if self.name == _OBJECT else f"{_FORMAT}.schema"
        return Structure(Kind.JSON, self.schema, where, self.strict)


def read_tools(tools: Any) -> tuple[ToolDescription, ...]:
    """The functions that are offered. Raises OssiaError that names the first that is none."""
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
    description = optional_string(function.get("description"), f"{where}.function.description")
    strict = function.get("strict") is True
    parameters = function.get("parameters")
    return ToolDescription(function["name"], description or "", parameters, strict, tool)


def read_tool_choice(
    choice: Any, tools: Sequence[ToolDescription], *, others: bool = False
) -> ToolChoice:
    """What the reply may call: a mode by name, or an object that names one function, or several
    with a mode, in the form of Chat Completions or of Responses. Raises OssiaError for others, and
    for functions that are not among `tools`. others: there are tools besides.
    """
    if isinstance(choice, Mapping):
        return _choice_of_functions(choice, tools)
    mode = ToolMode.AUTO if choice is None else choice
    if mode not in list(ToolMode):
        raise OssiaError(
            f"tool_choice: must be {', '.join(ToolMode)} or an object with type 'function' and the "
            f"function's name, not {choice!r}"
        )
    if mode == ToolMode.REQUIRED and not (tools or others):
        raise OssiaError('tool_choice "required": there are no tools to call')
    return ToolChoice(ToolMode(mode))


def _choice_of_functions(choice: Mapping[str, Any], tools: Sequence[ToolDescription]) -> ToolChoice:
    allowed = choice.get("allowed_tools", choice)
    if choice.get("type") == "function":
        mode, names = ToolMode.REQUIRED, [_name_of(choice)]
    elif choice.get("type") == "allowed_tools" and isinstance(allowed, Mapping):
        mode, listed = allowed.get("mode"), allowed.get("tools")
        names = [_name_of(tool) for tool in listed] if isinstance(listed, list) else []
    else:
        mode, names = None, []
    if mode not in (ToolMode.AUTO, ToolMode.REQUIRED) or not names or None in names:
        raise OssiaError(
            "tool_choice: must be a string, an object with type 'function' and the function's "
            "name, or one with type 'allowed_tools', a mode (auto, required) and tools, not "
            f"{choice!r}"
        )
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise OssiaError(f"tool_choice: there is no tool {name!r}")
    return ToolChoice(ToolMode(mode), tuple(filter(None, names)))


def _name_of(tool: Any) -> str | None:
    """The name of a function in the form of Chat Completions or of Responses."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def read_response_format(value: Any) -> ResponseFormat | None:
    """The answer's schema; None for text. Raises OssiaError for anything else."""
    match value:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return ResponseFormat(_OBJECT, ANY_OBJECT)
        case {"type": "json_schema", "json_schema": Mapping() as schema}:
            return _read_json_schema(schema, _FORMAT)
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
    description = optional_string(given.get("description"), f"{where}.description")
    return ResponseFormat(name, schema, description or "", given.get("strict") is True)


def optional_string(value: Any, where: str) -> str | None:
    """The string or None. Raises OssiaError for anything else."""
    if value is not None and not isinstance(value, str):
        raise OssiaError(f"{where}: must be a string, not {value!r}")
    return value
