"""The reference, from the code: every command with its options, and the public names of Python."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, is_dataclass
from enum import StrEnum
from types import FunctionType
from typing import Any, ForwardRef, get_args

import typer
from typer.core import TyperGroup

import ossia
from ossia.api import Stream
from ossia.api.llm import ChatOptions, Sampling, TextOptions
from ossia.cli.main import app
from ossia.insight.xray_options import XrayOptions
from ossia.options import EngineOptions, LoadOptions, Setting, settings

# What the book says of each public name, and in which order.
SECTIONS = {
    "Talking with a model": ("LLM", "Reply", "Completion", "ToolCall"),
    "Streams": (
        *("Stream", "Event", "TextDelta", "Channel", "ToolCallStart", "ToolCallDelta"),
        "Finished",
    ),
    "Models": ("config", "ModelConfig", "load_model", "save_model"),
    "Inside a model": ("xray", "Trace"),
    "Errors": ("OssiaError",),
}
# Whose fields are keyword arguments, **options in signatures; those of a text or chat are typed.
_KEYWORDS = (LoadOptions, EngineOptions, XrayOptions)
_DRAWING: tuple[type, ...] = (Sampling, TextOptions, ChatOptions)
_DEFAULT = re.compile(r"\s*\[(?:default: (?P<default>.*)|required)\]$", re.DOTALL)
_LINE = 88  # of a signature


def commands() -> str:
    """The page of the commands, in Markdown."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    parts = [
        "# Commands",
        "`ossia COMMAND --help` prints the same. Bad input is one line and exit code 2.",
    ]
    for name, command in group.commands.items():
        parts += _command(command, f"ossia {name}", 2)
        if isinstance(command, TyperGroup):
            for inner, nested in command.commands.items():
                parts += _command(nested, f"ossia {name} {inner}", 3)
    return "\n\n".join(parts) + "\n"


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}"
    context = command.make_context(name, [], resilient_parsing=True)
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield _escaped(inspect.cleandoc(command.help))
    rows = [_row(*record) for p in command.params if (record := p.get_help_record(context))]
    if rows:
        yield _table(("option", "meaning", "default"), rows)
    if command.epilog:
        yield f"```text\n{command.epilog.removeprefix('Example: ')}\n```"


def _row(names: str, text: str) -> tuple[str, str, str]:
    found = _DEFAULT.search(text)
    default = "" if found is None else found["default"] or "required"
    spellings = ", ".join(f"`{spelling}`" for spelling in names.split(", "))
    return spellings, _escaped(text[: found.start()] if found else text), _escaped(default)


def python() -> str:
    """The page of the Python package, in Markdown."""
    parts = [
        "# Python",
        "What `import ossia` offers. The fields of `options`, with which signatures end, stand "
        "[below](#options).",
    ]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += _public(name, getattr(ossia, name))
    parts.append("## Options")
    hints = {
        name: hint.__forward_arg__ if isinstance(hint, ForwardRef) else str(hint)
        for name, hint in inspect.get_annotations(ChatOptions).items()
    }
    for kind, names in _drawing(hints).items():
        rows = [(f"`{name}`", f"`{hints[name]}`") for name in names]
        parts += [f"### {kind.__name__}", _text(kind), _table(("option", "type"), rows)]
    for kind in _KEYWORDS:
        rows = map(_setting, settings(kind))
        parts += [f"### {kind.__name__}", _text(kind)]
        parts.append(_table(("option", "meaning", "default"), rows))
    return "\n\n".join(parts) + "\n"


def _drawing(hints: Iterable[str]) -> dict[type, list[str]]:
    """The fields that each kind of options adds to the one before it."""
    first = {n: next(k for k in _DRAWING if n in inspect.get_annotations(k)) for n in hints}
    return {kind: [name for name in hints if first[name] is kind] for kind in _DRAWING}


def _public(name: str, value: Any) -> Iterator[str]:
    yield f"### {name}"
    if inspect.isfunction(value):
        yield from _function(name, value)
    elif not inspect.isclass(value):  # a union of types
        yield _code(f"{name} = {' | '.join(kind.__name__ for kind in get_args(value))}")
    elif issubclass(value, StrEnum):
        yield _text(value)
        yield ", ".join(f"`{name}.{member.name}`" for member in value) + "."
    else:
        yield from _class(name, value)


def _class(name: str, value: type) -> Iterator[str]:
    if is_dataclass(value):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(value))).body
        assert isinstance(tree, ast.ClassDef)
        fields = [ast.unparse(node) for node in tree.body if isinstance(node, ast.AnnAssign)]
        yield _code("\n    ".join([f"class {name}:", *fields]))
    elif "__init__" in vars(value) and not issubclass(value, Stream):  # which chats make
        yield _code(_signature(name, value.__init__))
    yield _text(value)
    for member, found in vars(value).items():
        inner = found.__func__ if isinstance(found, classmethod) else found
        if member.startswith("_") or not isinstance(inner, property | FunctionType):
            continue
        yield f"#### {name}.{member}"
        if isinstance(inner, property):
            yield _text(inner)
        else:
            yield from _function(f"{name}.{member}", inner)


def _function(name: str, value: Callable[..., Any]) -> Iterator[str]:
    yield _code(_signature(name, value))
    yield _text(value)


def _signature(name: str, value: Callable[..., Any]) -> str:
    """As in the code, with a line for each parameter if it is long."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    given = tree.args
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    words = [_parameter(a, d) for a, d in zip(given.args, defaults, strict=True)]
    words = [word for word in words if word not in ("self", "cls")]
    if given.kwonlyargs:
        words.append("*")
    words += [_parameter(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg is not None:
        words.append(f"**{_parameter(given.kwarg, None)}")
    ends = (
        ""
        if tree.returns is None or tree.name == "__init__"
        else f" -> {ast.unparse(tree.returns)}"
    )
    line = f"{name}({', '.join(words)}){ends}"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){ends}"])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    hint = "" if argument.annotation is None else f": {ast.unparse(argument.annotation)}"
    return f"{argument.arg}{hint}" + ("" if default is None else f" = {ast.unparse(default)}")


def _setting(setting: Setting) -> tuple[str, str, str]:
    value = setting.default.value if isinstance(setting.default, StrEnum) else setting.default
    default = setting.option.default or ("" if value is MISSING else f"`{value!r}`")
    return f"`{setting.name}`", _escaped(setting.option.help), _escaped(default)


def _text(value: Any) -> str:
    found = inspect.getdoc(value)
    assert found, f"{value} has no docstring"
    return _escaped(found)


def _escaped(text: str) -> str:
    """Prose in which Markdown finds nothing but code between backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/python.md": python,
}
