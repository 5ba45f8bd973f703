"""A tokenizer.json whose work has no bound is refused; those of the families are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from ossia.errors import OssiaError
from ossia.system.patterns import exponential
from ossia.text import bounds, load_tokenizer


def tokenizer(pattern: str | None = None, *steps: Any) -> tokenizers.Tokenizer:
    symbols = pre_tokenizers.ByteLevel.alphabet()
    inner = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*split, last])  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if steps:
        inner.normalizer = normalizers.Sequence(list(steps))  # type: ignore[assignment]
    return inner


@pytest.mark.parametrize("name", ["gpt2_folder", "qwen3_folder", "gpt_oss_folder"])
def test_the_families_tokenizers_are_within_bounds(
    name: str, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(name) / "tokenizer.json"
    bounds.check(tokenizers.Tokenizer.from_file(str(file)), str(file))


SOUND = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",  # digits from the right
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?[a-z]+",
    r"(?:[ab][cd])+",
    r"[()+*|]+\)|\(",
    r"\s*[\r\n]+",
]
EXPONENTIAL = [
    "(a+)+b",
    "(?:a|a)*b",
    "(?:a|b|ab)*c",
    "([a-z]+)*!",
    "(?i:(a*))*b",
    "((a{1,5}){1,9})+b",
    "(a?){30}a{30}",
    r"(x+x+)+y",
    r"(?:(?:a+)b?)*c",
    r"(?>(a+)+)b",
    r"(?<name>a+)+b",
]
REFERENCES = [r"(a+)\1", r"(?<n>a|b\g<n>c)", r"(?<n>a)\k<n>"]


@pytest.mark.parametrize("pattern", SOUND)
def test_sound_patterns_pass(pattern: str) -> None:
    assert exponential(pattern) is None
    bounds.check(tokenizer(pattern), "tokenizer.json")


@pytest.mark.parametrize("pattern", EXPONENTIAL)
def test_patterns_that_can_take_exponential_time_are_refused(pattern: str) -> None:
    with pytest.raises(OssiaError, match=r"^a/tokenizer\.json: its pattern .* exponential time"):
        bounds.check(tokenizer(pattern), "a/tokenizer.json")


@pytest.mark.parametrize("pattern", REFERENCES)
def test_references_are_refused(pattern: str) -> None:
    assert exponential(pattern) == "a reference to a group"


@pytest.mark.parametrize("pattern", [".*.*.*.*!", r"\s*\s*\s*\s*\s*x", "[aA]*a*[Aa]*a*A*a*:"])
def test_patterns_that_take_seconds_are_refused(pattern: str) -> None:
    assert exponential(pattern) is None
    with pytest.raises(OssiaError, match=r"its patterns take more than .* characters"):
        bounds.check(tokenizer(pattern), "tokenizer.json")


MULTIPLYING: list[list[Callable[[], Any]]] = [
    [lambda: normalizers.Replace("a", "a" * 100)],
    [lambda: normalizers.Replace("a", "aaa")] * 10,
    [lambda: normalizers.Replace(Regex("."), "aaaa")] * 2,
    [lambda: normalizers.Prepend("a" * 50)],
    [lambda: normalizers.NFC(), lambda: normalizers.Replace("", "abcdefghijkl")],
]


@pytest.mark.parametrize("steps", MULTIPLYING)
def test_normalizers_that_multiply_a_text_are_refused(steps: list[Callable[[], Any]]) -> None:
    with pytest.raises(OssiaError, match="its normalizers multiply a text by"):
        bounds.check(tokenizer(None, *(step() for step in steps)), "tokenizer.json")


def test_usual_normalizers_pass() -> None:
    steps = [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Sequence([]),
    ]
    bounds.check(tokenizer(None, *steps), "tokenizer.json")


def test_patterns_of_normalizers_are_checked_too() -> None:
    with pytest.raises(OssiaError, match="exponential time"):
        bounds.check(tokenizer(None, normalizers.Replace(Regex("(a+)+b"), "x")), "tokenizer.json")


def test_they_hold_when_a_folder_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for inner, message in (
        (tokenizer("(a+)+b"), "exponential time"),
        (tokenizer(None, normalizers.Replace("a", "a" * 100)), "multiply a text by"),
    ):
        inner.save(str(file))
        with pytest.raises(OssiaError, match=message) as error:
            load_tokenizer(tmp_path)
        assert str(error.value).startswith(str(file))
        assert "\n" not in str(error.value)
    with file.open("wb") as opened:
        opened.truncate(100_000_000)
    with pytest.raises(OssiaError, match="has 100,000,000 bytes; at most"):
        load_tokenizer(tmp_path)
