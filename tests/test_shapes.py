"""No function of the package is long, its parameters aside; ruff's PLR0913 counts those."""

import ast
from pathlib import Path

import ossia

ROOT = Path(ossia.__file__).parent
MOST_LINES = 60
MOST_OF_A_KERNEL = 70  # in Triton, where what is shared between functions is passed name by name


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.body[0].lineno + 1)
        > (MOST_OF_A_KERNEL if "triton" in path.parts else MOST_LINES)
    ]
    assert long == []
