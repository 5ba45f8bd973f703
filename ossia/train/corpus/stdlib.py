"""The corpus `stdlib`: source and documentation of the running Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ossia.errors import OssiaError
from ossia.train.corpus.documents import Corpus, Document

NAME = "stdlib"  # as --data

# Excluded: tests, programs, additions of pip or a distribution, and tables of data written as code
# (including `pydoc_data`, whose texts are read separately).
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

# Held out: small modules of many kinds that exist in every Python from 3.11 on and that no other
# module repeats.
HELD_OUT = (
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


def read() -> Corpus:
    """The library without its held-out modules, and these."""
    found = {document.name: document for document in _documents()}
    missing = [name for name in HELD_OUT if name not in found]
    if missing:
        raise OssiaError(
            f"--data {NAME}: this Python has no source of {missing[0]} "
            f"in {sysconfig.get_path('stdlib')}"
        )
    held_out = tuple(found.pop(name) for name in HELD_OUT)
    return Corpus(tuple(found.values()), held_out)


def _documents() -> list[Document]:
    """The modules of the library that are worth learning from, by name, and the topics of its
    language reference.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if _SKIPPED_FOLDERS.isdisjoint(Path(name).parts) and not (
            name.startswith(_SKIPPED_PREFIXES) or name in _SKIPPED_FILES
        ):
            try:
                found.append(Document(name, file.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue  # a few modules declare another encoding
    found += _topics(root / _TOPICS)
    return [document for document in found if document.text]


def _topics(file: Path) -> Iterator[Document]:
    """The texts of a module that only assigns a dictionary of texts to a name."""
    if not file.is_file():
        return  # some distributions omit it
    (assignment,) = ast.parse(file.read_text(encoding="utf-8")).body
    assert isinstance(assignment, ast.Assign)
    for name, text in ast.literal_eval(assignment.value).items():
        yield Document(f"{_TOPICS}:{name}", text)
