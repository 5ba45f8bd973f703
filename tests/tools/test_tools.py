"""The tools of `ossia chat`: what they return and refuse, and that no call can break a chat."""

from __future__ import annotations

import inspect
import json
import math
import sys

import pytest

from ossia.errors import OssiaError
from ossia.tools import BUILT_IN, Tool, call
from ossia.tools.calculate import calculate
from ossia.tools.documentation import documentation, summary


@pytest.mark.parametrize(
    "expression", ["2 + 3 * 4", "(2 + 3) * 4", "-7 // 2", "7 % 3", "2 ** 10", "1 / 3", " 5 ", "--3"]
)
def test_expressions_have_the_value_that_python_gives_them(expression: str) -> None:
    assert calculate(expression) == repr(eval(expression.strip()))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os')", "only numbers"),
        ("abs(1)", "only numbers"),
        ("x", "only numbers"),
        ("True + 1", "only numbers"),
        ("1 if 1 else 2", "only numbers"),
        ("[1]", "only numbers"),
        ("1 << 5", "only numbers"),
        ("1 +", "not an arithmetic expression"),
        ("(" * 150 + "1" + ")" * 150, "longer than"),
        ("(" * 99 + "1", "not an arithmetic expression"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("10 ** 60 * 10", "too large"),
        ("1e400", "too large"),
        ("(-8) ** 0.5", "not a real number"),
    ],
)
def test_all_else_is_refused(expression: str, message: str) -> None:
    with pytest.raises(OssiaError, match=message):
        calculate(expression)


def test_documentation_is_a_signature_and_the_first_paragraph() -> None:
    assert documentation("math.sqrt") == f"math.sqrt(x, /)\n{inspect.getdoc(math.sqrt)}"
    assert documentation("str.upper").startswith("str.upper(self, /)\nReturn a copy")
    assert documentation("os.path.join").startswith("os.path.join(a, *p)\nJoin two or more")


@pytest.mark.parametrize("name", ["str", "argparse.ArgumentParser", "subprocess.run", "types"])
def test_documentation_is_short(name: str) -> None:
    assert name < documentation(name)
    assert len(documentation(name)) <= 300


def test_a_docstring_that_begins_with_a_call_is_read_from_its_words() -> None:
    def function() -> None:
        """function(a, b) -> list

        Joins
        both.

        More."""

    assert summary(function) == "Joins both."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.nn", "has no torch.nn"),
        ("antigravity", "has no antigravity"),
        ("str.shout", "has no str.shout"),
        ("math.__loader__", "not a Python name"),
        ("os; import this", "not a Python name"),
    ],
)
def test_nothing_but_the_library_is_known(name: str, message: str) -> None:
    with pytest.raises(OssiaError, match=message):
        documentation(name)
    assert "antigravity" not in sys.modules


def test_a_namesake_of_a_module_is_not_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "graphlib.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "graphlib", raising=False)
    with pytest.raises(OssiaError, match="not in the standard library"):
        documentation("graphlib.TopologicalSorter")


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculate", '{"expression": "6 * 7"}', "42"),
        ("paint", "{}", "error: there is no tool paint; there are calculate, documentation"),
        ("calculate", "6 * 7", "error: the arguments are not JSON"),
        ("calculate", "[" * 100_000, "error: the arguments are not JSON"),
        ("calculate", '["6 * 7"]', "error: calculate takes an object with expression alone"),
        ("calculate", '{"sum": "1"}', "error: calculate takes an object with expression alone"),
        ("calculate", '{"expression": 6}', "error: expression must be a string"),
        ("calculate", '{"expression": "1 / 0"}', "error: division by zero"),
    ],
)
def test_a_wrong_call_has_a_result_that_says_so(name: str, arguments: str, result: str) -> None:
    assert call(BUILT_IN, name, arguments) == result


def test_the_schema_names_the_one_parameter() -> None:
    schema = Tool("shout", "Shouts.", "text", str.upper).schema()
    assert json.loads(json.dumps(schema))["function"]["parameters"]["required"] == ["text"]
    assert schema["type"] == "function"
