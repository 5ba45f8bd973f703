"""Chat templates as programs of strangers: compiled and rendered without access to the process, and
within a budget of text and time.

Each operation of a template is charged for what it makes, before it makes it where the result could
be far larger than its operands; loops, calls and comparisons look at the clock. Nothing is computed
at compile time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ossia.errors import OssiaError, brief
from ossia.text import budget

_MOST_SOURCE = 1 << 18  # characters; the longest published template has 30,000
_MOST_OUTPUT = 1 << 20  # characters, beside 16 times the input


class BrokenTemplate(OssiaError):
    """A chat template that cannot be compiled."""


def compiled(environment: Sandbox, text: str, source: str) -> jinja2.Template:
    """A template that `rendered` takes. Raises BrokenTemplate, which begins with `source`, for
    whatever is none.
    """
    if len(text) > _MOST_SOURCE:
        raise BrokenTemplate(f"{source}: a template of {len(text)} characters; more than any needs")
    try:
        with budget.spending(budget.UNITS):
            return environment.from_string(text)
    # A syntax error, or whatever the template's constants or Python's compiler raise.
    except Exception as error:
        raise BrokenTemplate(f"{source}: not a jinja template: {brief(error)}") from error


def rendered(template: jinja2.Template, variables: Mapping[str, Any], source: str) -> str:
    """The template's text, `variables["messages"]` being the chat.

    The budget grows with the chat: it suffices for a template that copies all text so far for each
    message. Raises OssiaError, which begins with `source`, if the template fails in any way.
    """
    try:
        given = budget.size(dict(variables))
        units = budget.UNITS + given * (64 + len(variables.get("messages", ())))
        with budget.spending(units):
            text = template.render(variables)
    except RecursionError as error:
        raise OssiaError(f"{source}: recurses without end") from error
    # A template is a program: it may divide by zero as well as call raise_exception.
    except Exception as error:
        raise OssiaError(f"{source}: cannot render these messages: {brief(error)}") from error
    if len(text) > _MOST_OUTPUT + 16 * given:
        raise OssiaError(f"{source}: makes {len(text)} characters of these messages")
    return text


class _CodeGenerator(CodeGenerator):
    """Code that looks at the clock in each block, and charges for what jinja computes itself."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.tick() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            return super().visit_Getitem(node, frame)
        self.write("environment.sliced(")
        super().visit_Getitem(node, frame)
        self.write(")")
        return None

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._charged(super().visit_Concat, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._charged(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._charged(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._charged(super().visit_Dict, node, frame)

    def _charged(self, visit: Callable[..., None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class Sandbox(ImmutableSandboxedEnvironment):
    """A jinja environment like that of transformers, whose templates spend a `budget`."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, extensions: Sequence[type[Extension]]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions
        )
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        for name, function in list(self.tests.items()):
            self.tests[name] = _counted(function, None)
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # random text

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter whose work is charged."""
        self.filters[name] = _counted(function, budget.FILTERS.get(name), name)

    def tick(self) -> None:
        budget.current().tick()

    def made(self, value: Any) -> Any:
        return budget.current().made(value)

    def sliced(self, value: Any) -> Any:
        """A slice shares its elements with what it was cut from."""
        if isinstance(value, Sized):
            budget.current().charge(len(value))
        return value

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """The text of a block or of the whole template."""
        spent, kept = budget.current(), []
        for part in parts:
            spent.charge(len(part) + 1)
            kept.append(part)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        spent = budget.current()
        if (cost := _BINARY.get(operator)) is not None:
            spent.charge(cost(left, right))
        return spent.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        spent = budget.current()
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(function, Macro):
            spent.made((args, _own(kwargs)))
        elif isinstance(owner, str | bytes | int) and name in budget.METHODS:
            if name in budget.MATERIALIZED:
                args = tuple(map(_whole, args))
            spent.charge(budget.METHODS[name](owner, *args, **_own(kwargs)))
        return spent.made(super().call(context, function, *args, **kwargs))


_BINARY = {"*": budget.product, "**": budget.power, "%": budget.remainder}


class _Namespace(Namespace):
    """One that does not print what it holds, and, as in transformers, holds nothing private."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be one of the values
        names = dict(*args[1:], **values)
        _check_public(names)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public([name])
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_public(names: Iterable[object]) -> None:
    for name in names:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _counted(
    function: Callable[..., Any], cost: Callable[..., int] | None, name: str = ""
) -> Callable[..., Any]:
    """A filter or test that spends the budget."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context comes before the value

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        spent = budget.current()
        if name in budget.MATERIALIZED:
            args = (*args[:first], *map(_whole, args[first : first + 1]), *args[first + 1 :])
        spent.charge(1 if cost is None else cost(*args[first:], **kwargs))
        return spent.made(function(*args, **kwargs))

    return counted


def _whole(values: Any) -> Any:
    """The values of an iterator, each of which is charged for as it is made, as a list."""
    return values if isinstance(values, Sized) or not isinstance(values, Iterator) else [*values]


def _own(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the template gave; jinja's begin with an underscore."""
    return {key: value for key, value in kwargs.items() if not key.startswith("_")}
