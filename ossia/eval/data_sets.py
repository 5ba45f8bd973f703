"""Known data sets as questions: their files as published, or by name from the Hugging Face hub.

Prompts and scorers are those of the source that each data set names here. How tokens are drawn is a
property of the model: its checkpoint states it, or an option of the run. No data set is part of
ossia.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError, brief
from ossia.eval import tasks
from ossia.eval.tasks import Question
from ossia.system.files import json_object

_BOXED = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_GPT_OSS = "github.com/openai/gpt-oss, gpt_oss/evals"
_QWEN3 = "huggingface.co/Qwen/Qwen3-0.6B, Best Practices"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DataSet:
    """Where a data set is on the hub, what its rows become, and where the prompt is stated."""

    hub: str
    configs: tuple[str | None, ...]
    split: str
    record: Callable[[Row], dict[str, Any]]
    source: str


def _problem(row: Row) -> dict[str, Any]:
    """A row of AIME, whose question goes by one of two names."""
    text = row.get("problem") or row["question"]
    answer = str(row["answer"]).strip().removesuffix("^\\circ").lstrip("0") or "0"
    return {"question": _BOXED.format(text), "answer": answer, "scorer": "number"}


def _gsm8k(row: Row) -> dict[str, Any]:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("the answer has no ####")
    question = _BOXED.format(row["question"])
    return {"question": question, "answer": answer.strip(), "scorer": "number"}


def _options(question: str, choices: Sequence[str], right: str) -> dict[str, Any]:
    letters = "ABCDEFGHIJ"[: len(choices)]
    listed = "\n".join(f"({a}) {text}" for a, text in zip(letters, choices, strict=True))
    named = ", ".join(f"'{letter}'" for letter in letters[:-1]) + f", or '{letters[-1]}'"
    return {
        "question": f"{question}\n\n{listed}\n\nExpress your final answer as the corresponding "
        f"option {named}.",
        "answer": right,
        "choices": [*choices],
        "scorer": "choice",
    }


def _gpqa(row: Row) -> dict[str, Any]:
    """The options in an order that the question decides, as the right one is always the first."""
    question = str(row["Question"]).strip()
    choices = [str(row["Correct Answer"]).strip()]
    choices += [str(row[f"Incorrect Answer {n}"]).strip() for n in (1, 2, 3)]
    order = random.Random(hashlib.sha256(question.encode()).digest()).sample(range(4), 4)
    right = "ABCD"[order.index(0)]
    return _options(question, [choices[i] for i in order], right)


def _mmlu_pro(row: Row) -> dict[str, Any]:
    return _options(row["question"], row["options"], str(row["answer"]))


def _human_eval(row: Row) -> dict[str, Any]:
    return {
        "id": row["task_id"],
        "question": "Complete this Python function. Reply with the whole function in one block of "
        f"code.\n\n```python\n{row['prompt']}```",
        "tests": f"{row['test']}\ncheck({row['entry_point']})",
        "prompt_code": row["prompt"],
        "scorer": "python",
    }


DATA_SETS = {
    "gpqa-diamond": DataSet(
        "Idavidrein/gpqa", ("gpqa_diamond",), "train", _gpqa, f"{_GPT_OSS}/gpqa_eval.py"
    ),
    "aime-2024": DataSet(
        "HuggingFaceH4/aime_2024", (None,), "train", _problem, f"{_GPT_OSS}/aime_eval.py"
    ),
    "aime-2025": DataSet(
        "opencompass/AIME2025",
        ("AIME2025-I", "AIME2025-II"),
        "test",
        _problem,
        f"{_GPT_OSS}/aime_eval.py",
    ),
    "aime-2026": DataSet(
        "MathArena/aime_2026", (None,), "train", _problem, f"{_GPT_OSS}/aime_eval.py"
    ),
    "mmlu-pro": DataSet(
        "TIGER-Lab/MMLU-Pro",
        (None,),
        "test",
        _mmlu_pro,
        f"as gpqa-diamond ({_GPT_OSS}/gpqa_eval.py), with ten options",
    ),
    "gsm8k": DataSet("openai/gsm8k", ("main",), "test", _gsm8k, f"{_QWEN3}: mathematics"),
    "humaneval": DataSet(
        "openai/openai_humaneval",
        (None,),
        "test",
        _human_eval,
        "the function and the tests of arXiv:2107.03374, asked for in words of ossia's own",
    ),
}


def load(name: str, limit: int | None = None) -> list[Question]:
    """The questions of a .jsonl file of tasks, of a data set on the hub (`gsm8k`), or of one in a
    file as published (`gsm8k:test.jsonl`). limit: of each task. Raises OssiaError.
    """
    kind, _, file = name.partition(":")
    known = DATA_SETS.get(kind.lower())
    if known is None:
        if not Path(name).is_file():
            raise OssiaError(
                f"--task {name}: neither a file nor a known data set; these are known: "
                f"{', '.join(DATA_SETS)}"
            )
        return tasks.read(Path(name), limit)
    kind = kind.lower()
    rows = enumerate(_file_rows(Path(file)) if file else _hub_rows(known), 1)
    questions: list[Question] = []
    for number, row in rows:
        where = f"{file or known.hub}, row {number}"
        try:
            record = {"id": f"{kind}-{number}", "task": kind, **known.record(row)}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            lacks = f"it has no {error}" if isinstance(error, KeyError) else brief(error)
            raise OssiaError(f"{where} is no row of {kind}: {lacks}") from error
        questions.append(tasks.question_of(record, where, kind))
        if limit is not None and number >= limit:
            break
    if not questions:
        raise OssiaError(f"{name}: holds no question")
    return questions


def sources(names: Sequence[str]) -> dict[str, str]:
    """Where the prompts of known data sets are stated."""
    kinds = (name.partition(":")[0].lower() for name in names)
    return {kind: DATA_SETS[kind].source for kind in kinds if kind in DATA_SETS}


def _file_rows(file: Path) -> Iterator[Row]:
    """The rows of a .csv, .json or .jsonl file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OssiaError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OssiaError(f"{file} is not UTF-8: give a .csv, .json or .jsonl file") from error
    if file.suffix == ".csv":
        yield from csv.DictReader(io.StringIO(text))
    elif file.suffix == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise OssiaError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise OssiaError(f"{file} is not a list of objects")
        yield from rows
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield json_object(line.encode(), f"{file}, line {number}")


def _hub_rows(known: DataSet) -> Iterator[Row]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise OssiaError(
            f"{known.hub} needs the package datasets; pip install 'ossia[datasets]', or name a "
            "file after the data set, as gsm8k:test.jsonl"
        ) from error
    for config in known.configs:
        try:
            rows = load_dataset(known.hub, config, split=known.split)
        except Exception as error:  # of the hub, the network, or a gate: all are the user's to see
            raise OssiaError(f"cannot load {known.hub}: {brief(error)}") from error
        for row in rows:
            yield dict(row)
