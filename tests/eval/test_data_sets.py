"""Known data sets: rows as published become questions with the prompts that their sources state."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.eval import data_sets
from ossia.eval.published import PUBLISHED
from ossia.eval.scoring import score

GPQA = {
    "Question": "Which is a colour?",
    "Correct Answer": "blue",
    "Incorrect Answer 1": "loud",
    "Incorrect Answer 2": "wet",
    "Incorrect Answer 3": "late",
}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(n):\n    """Twice n."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * n\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {  # a row, a right reply and a wrong one
    "gsm8k": (
        {"question": "2 and 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        r"\boxed{5}",
        r"\boxed{2}",
    ),
    "aime-2024": ({"problem": "n?", "answer": "073"}, r"\boxed{73}", r"\boxed{37}"),
    "aime-2025": ({"question": "n?", "answer": "336^\\circ"}, "so 336", r"\boxed{0}"),
    "aime-2026": ({"problem": "n?", "answer": 0}, r"\boxed{000}", r"\boxed{1}"),
    "mmlu-pro": (
        {"question": "Which?", "options": [f"o{n}" for n in range(10)], "answer": "J"},
        "The answer is (J).",
        "The answer is (A).",
    ),
    "humaneval": (
        HUMAN_EVAL,
        "```python\ndef double(n):\n    return 2 * n\n```",
        "```python\ndef double(n):\n    return n\n```",
    ),
}


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_becomes_a_question_that_is_scored(kind: str, tmp_path: Path) -> None:
    row, right, wrong = ROWS[kind]
    [question] = data_sets.load(f"{kind}:{write(tmp_path, [row])}")
    assert question.task == kind
    assert score(question, right).right
    assert not score(question, wrong).right


def test_prompts_are_as_their_sources_state(tmp_path: Path) -> None:
    [aime] = data_sets.load(f"aime-2024:{write(tmp_path, [ROWS['aime-2024'][0]])}")
    assert aime.text == (
        "n?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    file = tmp_path / "gpqa_diamond.csv"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, GPQA)
        writer.writeheader()
        writer.writerows({**GPQA, "Question": f"{GPQA['Question']} {n}"} for n in range(40))
    questions = data_sets.load(f"gpqa-diamond:{file}")
    letters = {question.answers[0] for question in questions}
    assert letters == set("ABCD")  # the right option is not always in the same place
    first = questions[0]
    assert first.text.startswith("Which is a colour? 0\n\n(A) ")
    assert first.text.endswith(
        "Express your final answer as the corresponding option 'A', 'B', 'C', or 'D'."
    )
    assert all(score(q, f"({q.answers[0]})").right and score(q, "blue").right for q in questions)
    assert data_sets.load(f"gpqa-diamond:{file}")[3] == questions[3]  # the same order every time
    assert len(data_sets.load(f"gpqa-diamond:{file}", 5)) == 5


def test_the_hub_is_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return [{"question": f"{config}?", "answer": "7"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    questions = data_sets.load("aime-2025")
    assert asked == [
        ("opencompass/AIME2025", "AIME2025-I", "test"),
        ("opencompass/AIME2025", "AIME2025-II", "test"),
    ]
    assert [question.id for question in questions] == ["aime-2025-1", "aime-2025-2"]


def test_what_cannot_be_loaded_is_said_in_one_line(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, message in (
        ("gsm8k", "openai/gsm8k needs the package datasets; pip install 'ossia"),
        ("nothing", "--task nothing: neither a file nor a known data set; these are known"),
        (f"gsm8k:{tmp_path}/none.jsonl", "none.jsonl: No such file"),
        (f"gsm8k:{write(tmp_path, [{'question': '?'}])}", "row 1 is no row of gsm8k: it has no 'a"),
    ):
        with pytest.raises(OssiaError) as error:
            data_sets.load(name)
        assert message in str(error.value)


def test_published_figures_are_about_known_data_sets_and_name_their_sources() -> None:
    assert {figure.data_set for figure in PUBLISHED} <= data_sets.DATA_SETS.keys()
    assert all(figure.source and 0 < figure.percent < 100 for figure in PUBLISHED)
    keys = [(figure.data_set, figure.model, figure.effort) for figure in PUBLISHED]
    assert len(set(keys)) == len(keys)
