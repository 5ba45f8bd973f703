"""A learned vocabulary: texts round-trip, control tokens stand last and never come from text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ossia import text
from ossia.errors import OssiaError
from ossia.train.corpus import vocabulary

SAMPLE = "def add(a, b):\n    return a + b  # the sum\n" * 20 + "Grüße, 世界! 🙂 don't 12345\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write(vocabulary.learn([SAMPLE], 320), path, 128)
    return path


@pytest.mark.parametrize(
    "sample", [SAMPLE, "", " ", "\n\n\t x", "ünseen ☃ \x00 bytes", "<|end|> as text <|start|>"]
)
def test_every_text_round_trips(folder: Path, sample: str) -> None:
    ours = text.load_tokenizer(folder)
    ids = ours.encode(sample)
    assert ours.decode(ids) == sample
    assert not set(ids) & set(ours.control.values())


def test_control_tokens_are_the_last_ids_in_the_order_of_gpt_oss(folder: Path) -> None:
    ours = text.load_tokenizer(folder)
    first = ours.vocab_size - len(vocabulary.CONTROL_TOKENS)
    ids = ours.encode_control("".join(vocabulary.CONTROL_TOKENS))
    assert ids == list(range(first, ours.vocab_size))


def test_a_chat_is_rendered_in_harmony(folder: Path) -> None:
    ours = text.load_tokenizer(folder)
    assert text.load_format(folder, ours).name == "harmony"


def test_transformers_reads_the_same_ids(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(str(folder))
    assert theirs(SAMPLE)["input_ids"] == text.load_tokenizer(folder).encode(SAMPLE)
    assert theirs.eos_token == "<|return|>"


def test_text_is_split_as_o200k_splits_it_but_for_digits(gpt_oss_folder: Path) -> None:
    published = json.loads((gpt_oss_folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = published["pre_tokenizer"]["pretokenizers"][0]
    digits_alone = split["pattern"]["Regex"].replace(r"\p{N}{1,3}", r"\p{N}")
    assert digits_alone == vocabulary.SPLIT_PATTERN


def test_digits_stand_alone(folder: Path) -> None:
    ours = text.load_tokenizer(folder)
    numbers = vocabulary.learn(["x = 1234 + 1234\n" * 50], 320)
    assert [ours.decode([id]) for id in ours.encode("12345")] == list("12345")
    assert not any(len(token) > 1 and any(map(str.isdigit, token)) for token in numbers.get_vocab())


def test_learning_is_deterministic() -> None:
    one, other = (vocabulary.learn([SAMPLE], 320).to_str() for _ in range(2))
    assert one == other


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(OssiaError, match="--vocab-size 264"):
        vocabulary.learn([SAMPLE], 264)
