"""The thirty things that people type first: what the model inside the package answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ossia
from recipes.stdlib.first_typed import FIRST_TYPED, answers

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
SLACK = 1  # another processor rounds differently, which may tip an answer


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((MODEL / "first_typed.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    with ossia.LLM() as llm:
        return answers(llm)


@pytest.mark.parametrize("place", ["alone", "third"])
def test_it_answers_as_many_as_its_record_says(place: str, record: dict, found: dict) -> None:
    right = sum(reply == one.answer for one, reply in zip(FIRST_TYPED, found[place], strict=True))
    assert right >= record[place] - SLACK
    assert record["questions"] == len(FIRST_TYPED) == 30


def test_its_card_says_which_it_gets_wrong(record: dict) -> None:
    card = " ".join((MODEL / "README.md").read_text(encoding="utf-8").split())
    assert f"{record['alone']} of 30 alone, {record['third']} of 30 as the third" in card
    for question in {**record["wrong_alone"], **record["wrong_third"]}:
        assert question in card
