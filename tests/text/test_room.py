"""Prompts that are far too long are given up before all of them is encoded."""

from __future__ import annotations

import pytest

from ossia.text import Tokenizer, TooLong, at_most, load_tokenizer
from tests.scripted import write_byte_tokenizer


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory) -> Tokenizer:
    """A token is a byte."""
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The lengths of the texts that were encoded."""
    lengths: list[int] = []
    encode = Tokenizer._encoding

    def noted(self: Tokenizer, text: str):
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "_encoding", noted)
    return lengths


def test_texts_have_room_together(by_bytes):
    with at_most(10):
        assert len(by_bytes.encode("x" * 6)) == 6
        assert len(by_bytes.encode("é" * 2)) == 4
        assert by_bytes.encode("") == []
        with pytest.raises(TooLong, match="the prompt has more than 10 tokens; shorten it"):
            by_bytes.encode("x")
    assert len(by_bytes.encode("x" * 11)) == 11


def test_a_block_has_room_of_its_own(by_bytes):
    with at_most(3):
        with at_most(10):
            by_bytes.encode("x" * 10)
        by_bytes.encode("x" * 3)
        with pytest.raises(TooLong):
            by_bytes.encode("x")


@pytest.mark.parametrize("letter", ["x", "é", "\ud800"])
def test_of_a_text_that_is_far_too_long_little_is_encoded(by_bytes, encoded, letter):
    with at_most(1000), pytest.raises(TooLong):
        by_bytes.encode(letter * 10**6)
    assert sum(encoded) < 10**5


def test_a_part_is_enough_only_if_it_is_too_long_itself(by_bytes, encoded):
    with at_most(100_000), pytest.raises(TooLong):
        by_bytes.encode("x" * 10**6)
    assert 100_000 < sum(encoded) < 200_000


@pytest.mark.parametrize("text", [" " * 300_000, "a\n" * 50_000, "word " * 40_000])
def test_a_long_text_that_there_is_room_for_is_encoded_as_a_whole(qwen3_tokenizer, text):
    ids = qwen3_tokenizer.encode(text)
    with at_most(len(ids) + 100):
        assert qwen3_tokenizer.encode(text) == ids
    with at_most(len(ids) - 100), pytest.raises(TooLong):
        qwen3_tokenizer.encode(text)
