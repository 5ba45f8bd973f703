"""What is read, what is held out, and what is refused, by file and line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.train.corpus import documents, sources, stdlib
from ossia.train.corpus.documents import Document


def test_the_library_is_split_by_module() -> None:
    corpus = sources.read("stdlib")
    trained = {document.name for document in corpus.train}
    assert tuple(document.name for document in corpus.held_out) == stdlib.HELD_OUT
    assert {"json/encoder.py", "dataclasses.py", "asyncio/events.py"} <= trained
    assert not trained & set(stdlib.HELD_OUT)
    assert any(name.startswith("pydoc_data/topics.py:") for name in trained)
    assert not any(name.startswith(("test/", "idlelib/", "site-packages/")) for name in trained)


def test_of_a_file_the_last_lines_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    text = "".join(f"line {i}\n" for i in range(400))
    file.write_text(text)
    corpus = sources.read(str(file))
    (train,), (held_out,) = corpus.train, corpus.held_out
    assert train.text + held_out.text == text
    assert train.text.endswith("\n")
    assert len(held_out.text) == pytest.approx(len(text) / 20, abs=10)


def held_out(source: Path) -> set[str]:
    """The texts."""
    corpus = sources.read(str(source))
    assert corpus.train
    return {document.text for document in corpus.held_out}


def test_what_is_held_out_of_a_folder_stays_so_when_files_come(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_bytes(b"\xff")
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    before = held_out(tmp_path)
    new = {f"text {i}" for i in range(40, 200)}
    for i in range(40, 200):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    after = held_out(tmp_path)
    assert after - new == before
    assert 4 <= len(after) <= 20
    for i in range(40, 200):
        (tmp_path / f"{i}.txt").write_text(f"rewritten {i}")
    assert held_out(tmp_path) == before | {t.replace("text", "rewritten") for t in after - before}


def test_what_is_held_out_of_a_jsonl_file_does_not_follow_the_numbers_of_its_lines(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"text {i}"}) for i in range(200)]
    file.write_text("\n".join(lines))
    before = held_out(file)
    assert 4 <= len(before) <= 20
    file.write_text("\n".join(['{"text": "new"}', *reversed(lines)]))
    assert held_out(file) - {"new"} == before


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_a_few_texts_one_at_least_is_held_out_and_one_is_not(count: int, tmp_path: Path) -> None:
    for n in range(100):  # some have no hash that is low enough, some no other
        file = tmp_path / f"{n}.jsonl"
        file.write_text("\n".join(json.dumps({"text": f"{n} {i}"}) for i in range(count)))
        assert 1 <= len(held_out(file)) < count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "holds no text"),
        (b"one line only", "too few lines"),
        (b"good\n\xff\xfe", r"not UTF-8 text \(byte 5\)"),
    ],
)
def test_bad_text_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OssiaError, match=message) as error:
        sources.read(str(file))
    assert "bad.txt" in str(error.value)


def test_lines_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "one", "id": 2}\n')
    with pytest.raises(OssiaError, match=r"a\.jsonl: all its texts are the same"):
        sources.read(str(tmp_path / "a.jsonl"))


def test_limited_keeps_whole_documents_or_the_beginning_of_the_first() -> None:
    documents = [Document("a", "aaaa"), Document("b", "bbbbbbbb"), Document("c", "cc")]
    assert [d.name for d in sources.limited(documents, 6)] == ["a", "c"]
    assert sources.limited([Document("ü", "üüü")], 3) == [Document("ü", "ü")]


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\\ntwo", "id": 7}\n\n{"text": "drei"}\n')
    (tmp_path / "b.txt").write_text("four")
    corpus = sources.read(str(tmp_path))
    found = {document.name: document.text for document in (*corpus.train, *corpus.held_out)}
    assert found == {"a.jsonl:1": "one\ntwo", "a.jsonl:3": "drei", "b.txt": "four"}


def test_a_pattern_names_some_files_of_a_folder(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "package"
    (package / "part").mkdir(parents=True)
    (package / ".cache").mkdir()
    for name in ("one.py", "part/two.py", "part/three.txt", ".cache/four.py"):
        (package / name).write_text(name)
    (package / "part" / "native.so").write_bytes(b"\x7fELF\xff")
    corpus = sources.read(f"{package}/**/*.py")
    assert {d.name for d in (*corpus.train, *corpus.held_out)} == {"one.py", "part/two.py"}
    with pytest.raises(OssiaError, match=r"native\.so"):
        sources.read(str(package))
    with pytest.raises(OssiaError, match=r"\*\*/\*.md: holds no text"):
        sources.read(f"{package}/**/*.md")
    (package / "part" / "native.so").unlink()
    corpus = sources.read(f"{package}/part/**")
    assert {d.name for d in (*corpus.train, *corpus.held_out)} == {"two.py", "three.txt"}
    if sys.version_info < (3, 13):
        with pytest.raises(OssiaError, match=r"\*\*\.py: \*\* must stand alone, as in .*/\*\*/"):
            sources.read(f"{package}/**.py")
    with pytest.raises(OssiaError, match=r"absent/\*.py: no such file or folder"):
        sources.read(f"{package}/absent/*.py")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "open', "line 3: not JSON"),
        (b'{"texts": "a"}', 'line 3: not an object whose "text" is a string'),
        (b'{"text": 5}', 'line 3: not an object whose "text" is a string'),
        (b'{"messages": []}', '"text" is a string; on conversations a model is trained by ossia'),
        (b"null", 'line 3: not an object whose "text" is a string'),
        (b"[" * 100_000, "line 3: not JSON"),
        (b'{"text": "\xff"}', r"line 3: not UTF-8 text \(byte 10\)"),
        (b'{"text": "\\ud800"}', "line 3: its text has a lone surrogate"),
        (b'{"text": "' + b"x" * 2000 + b'"}', "line 3: longer than"),
    ],
)
def test_a_bad_line_is_named_with_its_file(
    tmp_path: Path, line: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"xxx" in line:
        monkeypatch.setattr(documents, "_LONGEST_LINE", 1000)
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(OssiaError, match=message) as error:
        sources.read(str(file))
    assert "bad.jsonl" in str(error.value)
