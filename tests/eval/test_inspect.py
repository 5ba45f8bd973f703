"""inspect-ai with the packaged model: answers, reasoning, tools and usage."""

# pyright: reportMissingImports=false
# (inspect_ai is an extra.)

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

inspect_ai = pytest.importorskip("inspect_ai", reason="make evaluations runs these")


def run(tmp_path: Path, samples: list[tuple[str, str]], **options):
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import match

    import ossia.eval.inspect_provider  # noqa: F401 - registers, where ossia is not installed

    task = Task(
        dataset=[Sample(input=question, target=answer) for question, answer in samples],
        scorer=match(location="any"),
        **options,
    )
    model = get_model("ossia/ossia-stdlib", memoize=False)
    [log] = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    return log


def test_questions_are_answered_with_reasoning_apart(tmp_path: Path) -> None:
    from inspect_ai.model import GenerateConfig

    questions = [("What is 7 * 8?", "56"), ("How many letters are in elephant?", "8")]
    config = GenerateConfig(temperature=0.0, max_tokens=300, reasoning_effort="medium")
    log = run(tmp_path, questions, config=config)
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    message = log.samples[0].output.choices[0].message
    assert message.text == "7 * 8 = 56."
    reasoning = [part.reasoning for part in message.content if part.type == "reasoning"]
    assert reasoning
    usage = log.samples[0].output.usage
    assert 0 < usage.reasoning_tokens < usage.output_tokens
    assert log.samples[0].output.choices[0].stop_reason == "stop"


def test_tools_are_called_and_their_results_read(tmp_path: Path) -> None:
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import tool

    calls = []

    @tool
    def calculate():
        async def execute(expression: str) -> str:
            """Calculates an arithmetic expression.

            Args:
                expression: An expression.
            """
            calls.append(expression)
            return "47104101"

        return execute

    solver = [use_tools(calculate()), generate()]
    log = run(tmp_path, [("What is 48213 * 977?", "47104101")], solver=solver)
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert len(calls) == 1
    roles = [message.role for message in log.samples[0].messages]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_a_call_whose_arguments_are_no_json_says_so() -> None:
    from ossia.eval.inspect_provider import _call

    assert _call("c", "f", '{"x": 1}').arguments == {"x": 1}
    assert "not JSON" in str(_call("c", "f", "{").parse_error)
    assert "not an object" in str(_call("c", "f", "[]").parse_error)


def test_inspect_finds_it_by_its_entry_point() -> None:
    found = [each for each in entry_points(group="inspect_ai") if each.name == "ossia"]
    if not found:
        pytest.skip("ossia was installed before it had entry points")
    assert found[0].value == "ossia.eval.inspect_provider"
