"""A hint whether models saw the questions: word n-grams that also occur in a training text.

As in the GPT-3 paper (arXiv:2005.14165, appendix C) n is 13, less for shorter questions. Overlap
is no proof: common phrases overlap too, and a paraphrase does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ossia.errors import OssiaError
from ossia.eval.results import Contamination, Overlap
from ossia.eval.tasks import Question

N = 13
_LEAST = 8  # words of a question that says something of its own
_WORD = re.compile(r"\w+")

Gram = tuple[str, ...]


def check(questions: Sequence[Question], training_text: str) -> Contamination:
    """Look for questions in a text file, or in all files of a folder. Raises OssiaError."""
    files = _files(Path(training_text))
    wanted: dict[str, set[Gram]] = {}
    for question in questions:
        words = _WORD.findall(question.text.lower())
        if len(words) >= _LEAST:
            wanted[question.id] = set(_grams(words, min(N, len(words))))
    sizes = {len(gram) for grams in wanted.values() for gram in grams}
    all_wanted = {gram for grams in wanted.values() for gram in grams}
    seen: set[Gram] = set()
    for file in files:
        words = _WORD.findall(_read(file).lower())
        for size in sizes:
            seen.update(gram for gram in _grams(words, size) if gram in all_wanted)
    shares = {id: len(grams & seen) / len(grams) for id, grams in wanted.items()}
    found = tuple(Overlap(id, share) for id, share in shares.items() if share)
    return Contamination(training_text, N, len(wanted), found)


def _grams(words: Sequence[str], size: int) -> Iterator[Gram]:
    return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    files = sorted(file for file in place.rglob("*") if file.is_file())
    if not files:
        raise OssiaError(f"--training-text {place}: no such file, and no folder with files")
    return files


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OssiaError(f"cannot read {file}: {error.strerror}") from error
