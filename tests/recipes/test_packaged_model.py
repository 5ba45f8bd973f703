"""The model inside the package is what its records say: size, architecture, loss and answers."""

from __future__ import annotations

import hashlib
import json
import lzma
import shlex
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

import ossia
from ossia import checkpoint, text
from ossia.cli.main import app
from ossia.config import ExpertFormat, MoEConfig
from ossia.model import Decoder
from ossia.train.corpus import conversations, packing, stdlib, vocabulary
from ossia.train.corpus.vocabulary import CONTROL_TOKENS
from ossia.train.evaluate import loss_of
from ossia.train.settings import FineTuneSettings, Settings, Training
from recipes.stdlib import scoring
from recipes.stdlib.words import chat_words

MODEL = Path(ossia.__file__).parent / "models" / "ossia-stdlib"
HELD_OUT = Path(__file__).parents[1] / "fixtures" / "dialogues" / "held_out.jsonl.xz"
DOCS = Path(__file__).parents[2] / "docs" / "training.md"
WORKED_OUT = (
    *("addition", "subtraction", "multiplication", "comparison", "sorting"),
    *("reverse", "count", "length", "letter", "spelling", "uppercase"),
)
EFFORTS = ("low", "medium", "high")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((MODEL / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def first() -> dict:
    """The record of the chats before those of several questions."""
    return json.loads((MODEL / "first.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def second() -> dict:
    """The record of the first chats of several questions."""
    return json.loads((MODEL / "second.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def third() -> dict:
    """The record of more of them."""
    return json.loads((MODEL / "third.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fourth() -> dict:
    """The record of the long run at a constant learning rate."""
    return json.loads((MODEL / "fourth.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base() -> dict:
    return json.loads((MODEL / "base.json").read_text(encoding="utf-8"))


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
    record: dict, decoder: Decoder, chats: Path
) -> None:
    """On an eighth of the replies, whose loss is within 0.5 % of that of all."""
    assert hashlib.sha256(chats.read_bytes()).hexdigest() == record["data"]["held_out"]["sha256"]
    chat_format = text.load_format(MODEL, text.load_tokenizer(MODEL))
    examples = [
        example
        for conversation in conversations.read(str(chats), "--eval-data")
        for example in conversations.render(conversation, chat_format, "2026-01-01")
    ]
    examples = examples[5::8]
    rows = packing.batches(examples, max(map(len, examples)))
    loss = packing.nats_per_token(loss_of(decoder), rows)
    # Sums of bfloat16 products differ in their last digits from one processor to another.
    assert loss == pytest.approx(record["held_out_loss"]["as_saved"], rel=0.02)


RUNS = {
    "base": Settings,
    **dict.fromkeys(("first", "second", "third", "fourth", "record"), FineTuneSettings),
}


@pytest.mark.parametrize("name", RUNS)
def test_its_records_are_of_whole_runs(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    losses = run["held_out_bits_per_byte" if name == "base" else "held_out_loss"]
    *_, last = run["curve"]
    assert last["step"] == run["steps"] == run["settings"]["steps"]
    assert losses["as_trained"] in last.values()


@pytest.mark.parametrize(("name", "kind"), RUNS.items())
def test_the_documented_commands_are_those_of_the_recorded_settings(
    name: str, kind: type[Training], request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(name)
    program, subcommand, *arguments = shlex.split(run["command"])
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    given = group.commands[subcommand].make_context(program, arguments).params
    asked = kind(**{field.name: given[field.name] for field in fields(kind)})
    assert asked.settled() == kind(**run["settings"])
    for file in (MODEL / "README.md", DOCS):
        documented = " ".join(file.read_text(encoding="utf-8").replace("\\\n", " ").split())
        assert run["command"] in documented


def table_of(card: str) -> list[list[str]]:
    """The rows of a card's tables."""
    return [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in card.splitlines()]


def test_its_card_has_the_shares_of_its_scores(scores: dict) -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    table = {row[0]: row[1:] for row in table_of(card)}
    shares = {
        **scores["accuracy"],
        **{f"question {n}": by for n, by in scores["accuracy_by_position"].items()},
        "all": scores["mean_accuracy"],
    }
    for name, accuracy in shares.items():
        assert table[name] == [f"{accuracy[effort]:.0%}" for effort in EFFORTS]
    tokens = [f"{scores['mean_reasoning_tokens'][effort]:.0f}" for effort in EFFORTS]
    assert table["tokens of analysis"] == tokens
    worked_out = [
        sum(scores["accuracy"][task][effort] for task in WORKED_OUT) / len(WORKED_OUT)
        for effort in EFFORTS
    ]
    assert table["those that are worked out"] == [f"{share:.0%}" for share in worked_out]
    assert f"{scores['well_formed']:.1%} of the chats" in " ".join(card.split())


def test_its_card_has_the_losses_of_its_records(
    base: dict, first: dict, second: dict, fourth: dict, record: dict
) -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    rows = table_of(card)
    curves = rows[next(n for n, row in enumerate(rows) if row[0] == "pretraining, step") + 2 :]
    chats = (first, second, fourth, record)
    runs = {"held_out_bits_per_byte": (base,), "held_out_loss": chats}
    for column, (key, run) in enumerate((key, run) for key, of in runs.items() for run in of):
        known = {f"{point['step']:,}": f"{point[key]:.3f}" for point in run["curve"]}
        cells = [(row[2 * column], row[2 * column + 1]) for row in curves]
        shown = [(step, loss) for step, loss in cells if step]
        assert len(shown) >= 6
        assert all(known[step] == loss for step, loss in shown)
    assert f"{base['held_out_bits_per_byte']['as_saved_at_1024_tokens']:.3f} in windows" in card
    assert f"**{record['held_out_loss']['as_saved']:.3f}** as saved" in card


def test_its_vocabulary_is_what_the_library_and_the_words_of_chats_teach(base: dict) -> None:
    corpus = stdlib.read()
    recorded = base["text"]["train"]["bytes"], [d["sha256"] for d in base["text"]["held_out"]]
    held_out = [hashlib.sha256(d.text.encode()).hexdigest() for d in corpus.held_out]
    if (sum(d.num_bytes for d in corpus.train), held_out) != recorded:
        pytest.skip(f"this Python's library is not that of {base['versions']['python']}")
    texts = [*(document.text for document in corpus.train), *chat_words()]
    learned = vocabulary.learn(texts, base["settings"]["vocab_size"])
    assert json.loads(learned.to_str()) == json.loads((MODEL / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def results(chats: Path) -> list[scoring.Result]:
    """What the model makes of every chat in the fixture: an eighth of those that were scored."""
    lines = [json.loads(line) for line in chats.read_text().splitlines()]
    return list(scoring.answer(ossia.LLM(), lines))


def test_it_answers_as_well_as_its_scores_say(scores: dict, results: list[scoring.Result]) -> None:
    found = scoring.summarize(results)
    # Of 105 chats at each effort, where the score is of 840: two standard deviations of a share.
    assert found["mean_accuracy"] == pytest.approx(scores["mean_accuracy"], abs=0.095)
    expected = scores["mean_reasoning_tokens"]
    assert found["mean_reasoning_tokens"] == pytest.approx(expected, rel=0.1, abs=0.5)
    assert sum(result.well_formed for result in results) >= 0.97 * len(results)


def test_an_analysis_helps_where_there_is_something_to_work_out(
    scores: dict, results: list[scoring.Result]
) -> None:
    by_effort = [sum(scores["accuracy"][t][e] for t in WORKED_OUT) for e in EFFORTS]
    assert by_effort == sorted(by_effort)  # of 440 questions
    right = Counter(r.effort for r in results if r.right and r.task in WORKED_OUT)
    assert right["low"] + 5 < min(right["medium"], right["high"])  # of 55


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
