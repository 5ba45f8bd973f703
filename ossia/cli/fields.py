"""A command's options, derived from the fields of dataclasses (`ossia.options`).

A parameter of the command whose type is such a dataclass becomes one option for each field, in its
place, and the command receives the dataclass built from their values:

    @derived
    def train(out: OutOption, settings: Given[Settings], as_json: JsonOption = False) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import typer

from ossia.options import Options, Setting, flag, settings

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Given(Generic[T]):
    """Options that are not built yet, for a command that does not always need them."""

    kind: type[T]
    values: Mapping[str, Any]
    asked: Mapping[str, Any]  # the part that the user typed

    def build(self) -> T:
        """Raises OssiaError for a value that cannot be."""
        return self.kind(**self.values)


def derived(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: with an option for each field of its dataclass parameters,
    whose types are `D` or `Given[D]` with a subclass D of `Options`. A parameter `context` is
    typer's.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups = {name: kind for name in own if (kind := _options_type(hints[name])) is not None}
    parameters = [_keyword("context", typer.Context)]
    for name, parameter in own.items():
        if name == "context":
            continue
        if name in groups:
            parameters += [_option(setting) for setting in settings(groups[name])]
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    @wraps(command)
    def run(*, context: typer.Context, **values: Any) -> None:
        for name, kind in groups.items():
            given = {s.name: _field(s, values.pop(s.name)) for s in settings(kind)}
            asked = {key: value for key, value in given.items() if _was_typed(context, key)}
            group = Given(kind, given, asked)
            values[name] = group if get_origin(hints[name]) is Given else group.build()
        if "context" in own:
            values["context"] = context
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options_type(hint: Any) -> type[Options] | None:
    kind = get_args(hint)[0] if get_origin(hint) is Given else hint
    return kind if isinstance(kind, type) and issubclass(kind, Options) else None


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _field(setting: Setting, value: Any) -> Any:
    """The field's value from what typer read."""
    return tuple(value) if setting.several else value


def _option(setting: Setting) -> inspect.Parameter:
    option, kind = setting.option, setting.type
    depends = option.default is not None and not setting.default
    names = [flag(setting.name)]
    if kind is bool and (option.off or setting.default is not False):
        names[0] += f"/{option.off or '--no-' + names[0].removeprefix('--')}"
    choices, reader = None, _number_reader(kind) if kind in (int, float) else None
    if option.shorthands and issubclass(kind, StrEnum):
        choices, reader = f"<{'|'.join(kind)}>", _reader(kind, option.shorthands)
    described = typer.Option(
        *names,
        *option.names,
        metavar=option.metavar or choices or _METAVARS.get(kind),
        help=f"{option.help} [default: {option.default}]" if depends else option.help,
        show_default=not depends,
        case_sensitive=False,
        parser=reader,
    )
    hint = kind | None if setting.optional else kind
    if setting.several:
        hint = list[kind]
    default = inspect.Parameter.empty if setting.default is MISSING else setting.default
    return _keyword(setting.name, Annotated[hint, described], default)


def _number_reader(kind: type[int] | type[float]) -> Callable[[Any], Any]:
    """Reads a number; defaults, which are not text, stay as they are."""

    def read(value: Any) -> Any:
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError as error:
            name = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{value!r} is not {name}.") from error

    return read


def _reader(kind: type[StrEnum], shorthands: Mapping[str, str]) -> Callable[[str], StrEnum]:
    """Reads a member of an enum by its value or by a shorthand, in upper or lower case."""

    def read(text: str) -> StrEnum:
        name = shorthands.get(text.lower(), text.lower())
        if name not in list(kind):
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(kind)}.")
        return kind(name)

    return read


def _keyword(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=hint)
