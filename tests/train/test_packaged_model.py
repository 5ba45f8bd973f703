"""The model inside the package is what its records say: size, architecture, loss and answers."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import pytest

import ossia
from ossia import checkpoint, text
from ossia.config import ExpertFormat, MoEConfig
from ossia.model import Decoder
from ossia.train.corpus import conversations, packing
from ossia.train.corpus.vocabulary import CONTROL_TOKENS
from ossia.train.evaluate import loss_of
from recipes.stdlib.command import run_all, summary

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
HELD_OUT = Path(__file__).parents[1] / "fixtures" / "dialogues" / "held_out.jsonl.xz"
DOCS = Path(__file__).parents[2] / "docs" / "training.md"
WORKED_OUT = (
    *("addition", "subtraction", "multiplication", "comparison", "sorting"),
    *("reverse", "count", "length", "letter", "uppercase"),
)


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((MODEL / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scores() -> dict:
    return json.loads((MODEL / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return checkpoint.load(MODEL)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dialogues") / "held_out.jsonl"
    file.write_bytes(lzma.decompress(HELD_OUT.read_bytes()))
    return file


def test_its_held_out_loss_is_what_the_record_says(
    record: dict, decoder: Decoder, chats: Path, tmp_path: Path
) -> None:
    assert hashlib.sha256(chats.read_bytes()).hexdigest() == record["data"]["held_out"]["sha256"]
    chat_format = text.load_format(MODEL, text.load_tokenizer(MODEL))
    examples = [
        example
        for conversation in conversations.read(str(chats), "--eval-data")
        for example in conversations.render(conversation, chat_format, "2026-01-01")
    ]
    length = record["settings"]["length"]
    packing.write(tmp_path / "rows", examples, length)
    loss = packing.nats_per_token(loss_of(decoder), packing.Rows(tmp_path / "rows", length))
    # Sums of bfloat16 products differ in their last digits from one processor to another.
    assert loss == pytest.approx(record["held_out_loss"]["as_saved"], rel=1e-2)


def test_its_records_are_of_whole_runs_and_its_card_and_the_docs_have_their_commands(
    record: dict,
) -> None:
    base = json.loads((MODEL / "base.json").read_text(encoding="utf-8"))
    texts = [file.read_text(encoding="utf-8") for file in (MODEL / "README.md", DOCS)]
    for run, loss in (
        (base, base["held_out_bits_per_byte"]["as_trained"]),
        (record, record["held_out_loss"]["as_trained"]),
    ):
        *_, last = run["curve"]
        assert last["step"] == run["steps"] == run["settings"]["steps"]
        assert loss in last.values()
        for text_ in texts:
            assert run["command"] in " ".join(text_.replace("\\\n", " ").split())


def test_rounding_to_mxfp4_costs_little(record: dict) -> None:
    loss = record["held_out_loss"]
    assert loss["as_saved"] == pytest.approx(loss["as_trained"], rel=0.05)


def test_it_answers_as_well_as_its_scores_say(scores: dict, chats: Path) -> None:
    lines = [json.loads(line) for line in chats.read_text().splitlines()]
    asked = [line for line in lines if line["reasoning_effort"] == "high"][::2]
    results = [result for _, result in run_all(ossia.LLM(), asked)]
    found = summary(results)["mean_accuracy"]["high"]
    # Of some forty chats, where the score is of hundreds.
    assert found == pytest.approx(scores["mean_accuracy"]["high"], abs=0.25)
    assert sum(result["well_formed"] for result in results) >= 0.9 * len(results)


def test_a_longer_analysis_helps_where_there_is_something_to_work_out(scores: dict) -> None:
    low, medium, high = (
        sum(scores["accuracy"][task][effort] for task in WORKED_OUT)
        for effort in ("low", "medium", "high")
    )
    assert low < medium < high


def test_it_has_the_architecture_of_gpt_oss_and_weighs_under_8_mb(decoder: Decoder) -> None:
    assert json.loads((MODEL / "config.json").read_text())["model_type"] == "gpt_oss"
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 8_000_000
    for i, layer in enumerate(decoder.config.layers):
        assert layer.attention.sinks
        assert (layer.attention.window is None) == (i % 2 == 1)
        assert isinstance(layer.feedforward, MoEConfig)
        assert layer.feedforward.format is ExpertFormat.MXFP4


def test_its_vocabulary_speaks_harmony() -> None:
    tokenizer = text.load_tokenizer(MODEL)
    assert set(CONTROL_TOKENS) <= tokenizer.control.keys()
    assert text.load_format(MODEL, tokenizer).name == "harmony"
