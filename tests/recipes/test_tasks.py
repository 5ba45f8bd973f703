"""The packaged model's questions are its held-out chats, and `ossia eval` scores them alike."""

from __future__ import annotations

import json
import lzma
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

import ossia
from ossia.eval import summary, tasks
from ossia.eval.options import EvalOptions
from ossia.eval.session import PACKAGED_TASKS, Session
from ossia.options import SamplingOptions
from recipes.stdlib import scoring
from recipes.stdlib.dialogues import held_out
from recipes.stdlib.tasks import questions

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
HELD_OUT = Path(__file__).parents[1] / "fixtures" / "dialogues" / "held_out.jsonl.xz"
CARD_SEED = 4  # of the held-out chats that the card's scores are of
EFFORTS = ("low", "medium", "high")


@pytest.fixture(scope="module")
def chats() -> list[dict]:
    return [json.loads(line) for line in lzma.decompress(HELD_OUT.read_bytes()).splitlines()]


def test_those_that_ship_are_the_chats_of_its_card() -> None:
    shipped = tasks.read(MODEL / PACKAGED_TASKS)
    scores = json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))
    assert 3 * len(shipped) == scores["chats"]
    assert Counter(q.task for q in shipped) == dict.fromkeys(scores["accuracy"], 40)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="drawn from Python 3.11's own library")
def test_those_that_ship_are_drawn_anew() -> None:
    shipped = tasks.read(MODEL / PACKAGED_TASKS)
    made = [*questions(asdict(chat) for chat in held_out(CARD_SEED, 40))]
    # Those about names of the standard library depend on its patch release too, and of the rest a
    # few, which were drawn after such names.
    stable = [r for r in made if r["task"] not in ("looked_up", "looked_up_twice", "unknown_name")]
    found = {(question.id, question.text, question.answers) for question in shipped}
    expected = {(r["id"], r["messages"][-1]["content"], (r["answer"],)) for r in stable}
    assert len(expected - found) <= 0.05 * len(expected)


def test_a_question_is_the_prompt_of_its_chat_at_each_effort(chats: list[dict]) -> None:
    llm = ossia.LLM()
    records = [*questions(chats)]
    assert len(records) == len(chats) / 3
    for number, chat in enumerate(chats):
        question = records[number // 3]
        turn = max(n for n, m in enumerate(chat["messages"]) if m["role"] == "user") + 1
        settings = {
            "tools": chat.get("tools"),
            "date": chat["date"],
            "reasoning_effort": chat["reasoning_effort"],
        }
        prompt = llm.chat_format.render(chat["messages"][:turn], **settings)
        assert llm.chat_format.render(question["messages"], **settings) == prompt


def test_a_run_scores_as_the_recipe_does(chats: list[dict], tmp_path: Path) -> None:
    """Both ask one question at a time, so that no batch decides how sums are rounded."""
    some = [*scoring.select(chats, 1)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in questions(some)))
    options = EvalOptions(task=(str(file),), effort=",".join(EFFORTS), concurrency=1)
    sampling = SamplingOptions(max_tokens=400)
    session = Session(tmp_path / "run", options, sampling, {}, ossia.LLM)
    with session.store:
        session.run(lambda _: None, lambda: False)
        results = summary.summarize(session.store)
    by_effort = {system.effort: system for system in results.systems}
    expected = list(scoring.answer(ossia.LLM(), some))
    for effort in EFFORTS:
        scored = [result for result in expected if result.effort == effort]
        system = by_effort[effort]
        assert system.replies == len(scored)
        right = sum(result.right for result in scored)
        assert system.overall.accuracy == pytest.approx(right / len(scored))
        reasoning = sum(result.reasoning_tokens for result in scored) / len(scored)
        assert system.reasoning_tokens == pytest.approx(reasoning, rel=0.1, abs=0.5)
