"""Where the text comes from, and which part of it is never trained on."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError

STDLIB = "stdlib"  # as --data: source and documentation of the running Python's standard library

# Tests, programs that are not a library, what pip or a distribution adds, and tables of data
# written as code (`pydoc_data` among them, whose texts are read as texts).
_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_TOPICS = "pydoc_data/topics.py"  # the language reference that `help()` shows
_SKIPPED_PREFIXES = (
    "_sysconfigdata",
    "encodings/cp",
    "encodings/iso",
    "encodings/koi",
    "encodings/mac",
)
_SKIPPED_FILES = frozenset(
    {"encodings/aliases.py", "encodings/hp_roman8.py", "encodings/kz1048.py", "html/entities.py"}
)

# Never trained on: small modules of many kinds, in every Python from 3.11 on, that no other module
# repeats.
STDLIB_HELD_OUT = (
    "bisect.py",
    "calendar.py",
    "colorsys.py",
    "fractions.py",
    "graphlib.py",
    "heapq.py",
    "html/parser.py",
    "json/decoder.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "textwrap.py",
)
# Of other sources one text in twenty is held out, of a single text its last twentieth.
_HELD_OUT_SHARE = 20
_HELD_OUT_BELOW = 2**256 // _HELD_OUT_SHARE  # as a hash

_LONGEST_LINE = 1 << 26  # bytes of a .jsonl file; more is a file of another kind


@dataclass(frozen=True)
class Document:
    """A text and the name it goes by in messages and records. `key` decides whether it is held
    out: a file's name, and of a line its text, as lines change their numbers.
    """

    name: str
    text: str
    key: str = ""

    @property
    def num_bytes(self) -> int:
        """Of UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """What is trained on and what never is."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read(source: str) -> Corpus:
    """The texts of `source`: the word "stdlib", a UTF-8 text file, or a folder of such files
    (hidden ones are passed over). Each line of a .jsonl file is an object whose "text" is one.

    The named modules of the standard library are held out, of a single text its last twentieth, of
    several each that has one of the lowest twentieth of hashes (of a file's name, or a line's
    text), so that adding others moves none; where none has, that of the lowest hash. Raises
    OssiaError, with file and line, for a source that is absent, empty, not UTF-8, not JSON where it
    says so, or too small to hold anything out.
    """
    if source == STDLIB:
        return _read_stdlib()
    path = Path(source)
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.is_file()]
        names = {f: f.relative_to(path).as_posix() for f in files}
        documents = [
            document
            for file, name in names.items()
            if not any(part.startswith(".") for part in Path(name).parts)
            for document in _documents(file, name)
        ]
    elif path.is_file():
        documents = list(_documents(path, path.name))
    else:
        raise OssiaError(f"--data {source}: no such file or folder (nor the word {STDLIB})")
    documents = [document for document in documents if document.text]
    if not documents:
        raise OssiaError(f"--data {source}: holds no text")
    if len(documents) == 1:
        return _split_text(documents[0])
    return _split_documents(documents, source)


def stdlib_documents(root: Path | None = None) -> list[Document]:
    """The modules of the standard library that are worth learning from, by name, and the topics of
    its language reference; `root` is the running Python's unless given.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    documents = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if _SKIPPED_FOLDERS.isdisjoint(Path(name).parts) and not (
            name.startswith(_SKIPPED_PREFIXES) or name in _SKIPPED_FILES
        ):
            try:
                documents.append(Document(name, file.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue  # a few modules declare another encoding
    documents += _topics(root / _TOPICS)
    return [document for document in documents if document.text]


def _topics(file: Path) -> Iterator[Document]:
    """The texts of a module that does nothing but assign a dictionary of them to one name."""
    if not file.is_file():
        return  # some distributions leave it out
    (assignment,) = ast.parse(file.read_text(encoding="utf-8")).body
    assert isinstance(assignment, ast.Assign)
    for name, text in ast.literal_eval(assignment.value).items():
        yield Document(f"{_TOPICS}:{name}", text)


def _read_stdlib() -> Corpus:
    documents = {document.name: document for document in stdlib_documents()}
    missing = [name for name in STDLIB_HELD_OUT if name not in documents]
    if missing:
        raise OssiaError(
            f"--data {STDLIB}: this Python has no source of {missing[0]} "
            f"in {sysconfig.get_path('stdlib')}"
        )
    held_out = tuple(documents.pop(name) for name in STDLIB_HELD_OUT)
    return Corpus(tuple(documents.values()), held_out)


def _documents(file: Path, name: str) -> Iterator[Document]:
    try:
        if file.suffix == ".jsonl":
            yield from _json_lines(file, name)
        else:
            yield Document(name, file.read_text(encoding="utf-8"), key=name)
    except UnicodeDecodeError as error:
        raise OssiaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise OssiaError(f"{file}: {error.strerror}") from error


def _json_lines(file: Path, name: str) -> Iterator[Document]:
    """A document for each line that is not blank."""
    for number, value in json_lines(file):
        where = f"{file}, line {number}"
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise OssiaError(f'{where}: not an object whose "text" is a string')
        # A lone surrogate is JSON, but no text.
        if not _is_unicode(value["text"]):
            raise OssiaError(f"{where}: its text has a lone surrogate, which UTF-8 cannot hold")
        yield Document(f"{name}:{number}", value["text"], key=value["text"])


def json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank; OssiaError names one that is not JSON."""
    number = 0
    with file.open("rb") as lines:
        while line := lines.readline(_LONGEST_LINE + 1):
            number += 1
            where = f"{file}, line {number}"
            if len(line) > _LONGEST_LINE:
                raise OssiaError(f"{where}: longer than {_LONGEST_LINE >> 20} MiB")
            try:
                value = json.loads(line.decode()) if line.strip() else None
            except UnicodeDecodeError as error:
                raise OssiaError(f"{where}: not UTF-8 text (byte {error.start})") from error
            except json.JSONDecodeError as error:
                problem = f"{error.msg}, column {error.colno}"
                raise OssiaError(f"{where}: not JSON ({problem})") from error
            except (ValueError, RecursionError) as error:
                raise OssiaError(f"{where}: not JSON ({error})") from error
            if line.strip():
                yield number, value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_text(document: Document) -> Corpus:
    text = document.text
    cut = text.rfind("\n", 0, len(text) - len(text) // _HELD_OUT_SHARE) + 1
    if not text[:cut].strip() or not text[cut:].strip():
        raise OssiaError(f"{document.name}: too few lines to hold the last twentieth out")
    return Corpus((Document(document.name, text[:cut]),), (Document(document.name, text[cut:]),))


def _split_documents(documents: list[Document], source: str) -> Corpus:
    hashes = [int(hashlib.sha256(d.key.encode()).hexdigest(), 16) for d in documents]
    lowest, highest = min(hashes), max(hashes)
    if lowest == highest:
        raise OssiaError(f"--data {source}: all its texts are the same, so none can be held out")
    # Of a few texts too at least one is held out, and at least one is not.
    below = min(max(_HELD_OUT_BELOW, lowest + 1), highest)
    both = list(zip(documents, hashes, strict=True))
    return Corpus(
        tuple(document for document, key in both if key >= below),
        tuple(document for document, key in both if key < below),
    )


def limited(documents: Iterable[Document], num_bytes: int) -> list[Document]:
    """The first documents, as many as fit whole; of the very first at least its beginning."""
    kept: list[Document] = []
    for document in documents:
        if document.num_bytes <= num_bytes:
            kept.append(document)
            num_bytes -= document.num_bytes
        elif not kept:
            start = document.text.encode()[:num_bytes].decode(errors="ignore")
            return [Document(document.name, start)]
    return kept
