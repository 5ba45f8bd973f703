"""Arithmetic on a string. Only numbers and operators are evaluated, never names or calls."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from ossia.errors import OssiaError

_LONGEST = 200  # characters of an expression
_LARGEST = 10**60  # of any intermediate value, so that no power takes long

Number = int | float

_OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LARGEST_POWER = 200


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / // % ** and parentheses, as Python prints it.

    Raises OssiaError for any other expression, one without a value, and values above 10**60.
    """
    if len(expression) > _LONGEST:
        raise OssiaError(f"the expression is longer than {_LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise OssiaError(f"{expression!r} is not an arithmetic expression") from error
    try:
        return repr(_value(tree.body))
    except ZeroDivisionError as error:
        raise OssiaError("division by zero") from error
    except OverflowError as error:
        raise OssiaError("the result is too large") from error


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _bounded(_OPERATIONS[type(op)](_value(left), _value(right)))
    raise OssiaError("only numbers and + - * / // % ** ( ) can be calculated")


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > _LARGEST_POWER:
        raise OverflowError
    result = base**exponent
    if isinstance(result, complex):
        raise OssiaError("the result is not a real number")
    return _bounded(result)


def _bounded(number: Number) -> Number:
    if not abs(number) <= _LARGEST:  # false for NaN too
        raise OverflowError
    return number
