"""Runs code as a notebook runs a cell: what the last expression is, if not None, is shown."""

from __future__ import annotations

import ast
import linecache
import sys
import traceback
import types

_NAME = "<python>"


def run(code: str) -> None:
    """Run the code as the module __main__, and exit: with 1 and a traceback, of the code's own
    lines, if it raises.
    """
    linecache.cache[_NAME] = (len(code), None, code.splitlines(keepends=True), _NAME)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        tree = ast.parse(code, _NAME)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            del tree.body[-1]
        exec(compile(tree, _NAME, "exec"), vars(main))
        if isinstance(last, ast.Expr):
            shown = compile(ast.Expression(last.value), _NAME, "eval")
            sys.displayhook(eval(shown, vars(main)))
    except SystemExit:
        raise
    except BaseException as error:
        own = error.__traceback__
        traceback.print_exception(error.with_traceback(own and own.tb_next))
        sys.exit(1)
