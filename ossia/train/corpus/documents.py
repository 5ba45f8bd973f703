"""Texts read from files: a document per file, or per line of a .jsonl file."""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError

_UTF8 = "utf-8-sig"  # with a mark or without
_MOST_SPACE = 1 << 12  # characters before the list of a file that is one
_WILD = set("*?[")  # in a pattern
_LONGEST_LINE = 1 << 26  # bytes of a line of a .jsonl file; more means a file of another kind


@dataclass(frozen=True)
class Document:
    """A text and its name in messages and records. `key` decides whether it is held out: the name
    of a file, or the text of a line, because line numbers change.
    """

    name: str
    text: str
    key: str = ""

    @property
    def num_bytes(self) -> int:
        """Size in UTF-8 bytes."""
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """The texts to train on and those held out."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]


def read(source: str, option: str) -> list[Document]:
    """The documents of `source`: a UTF-8 text file, a folder of them, whose hidden files are
    skipped, or a pattern for some of them, such as src/**/*.py. Each line of a .jsonl file is an
    object with a "text".

    Raises OssiaError for a source that is absent, which it calls by the `option` that named it,
    and, with file and line, for one that is empty, not UTF-8, or not JSON where it says so.
    """
    path = Path(source)
    root = Path(*itertools.takewhile(lambda part: not _WILD & set(part), path.parts))
    if path.is_dir():
        documents = _in_folder(path, "**/*")
    elif path.is_file():
        documents = list(_documents(path, path.name))
    elif root != path and root.is_dir():
        pattern = path.relative_to(root)
        if pattern.name == "**":  # which only newer versions of Python match with files
            pattern /= "*"
        try:
            documents = _in_folder(root, str(pattern))
        except ValueError as error:  # of ** within a name, until Python 3.13
            raise OssiaError(
                f"{option} {source}: ** must stand alone, as in {root}/**/*.txt"
            ) from error
    else:
        raise OssiaError(f"{option} {source}: no such file or folder")
    documents = [document for document in documents if document.text]
    if not documents:
        raise OssiaError(f"{option} {source}: holds no text")
    return documents


def _in_folder(folder: Path, pattern: str) -> list[Document]:
    """Those of its files that match; names are relative to it."""
    files = [file for file in sorted(folder.glob(pattern)) if file.is_file()]
    names = {file: file.relative_to(folder) for file in files}
    return [
        document
        for file, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
        for document in _documents(file, name.as_posix())
    ]


def _documents(file: Path, name: str) -> Iterator[Document]:
    try:
        if file.suffix == ".jsonl":
            yield from _json_lines(file, name)
        else:
            yield Document(name, read_text(file), key=name)
    except OSError as error:
        raise OssiaError(f"{file}: {error.strerror}") from error


def _json_lines(file: Path, name: str) -> Iterator[Document]:
    """A document for each line that is not blank."""
    for number, value in json_lines(file):
        where = f"{file}, line {number}"
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            chats = isinstance(value, dict) and isinstance(value.get("messages"), list)
            hint = "; on conversations a model is trained by ossia finetune" if chats else ""
            raise OssiaError(f'{where}: not an object whose "text" is a string{hint}')
        # A lone surrogate is valid JSON, but not valid text.
        if not _is_unicode(value["text"]):
            raise OssiaError(f"{where}: its text has a lone surrogate, which UTF-8 cannot hold")
        yield Document(f"{name}:{number}", value["text"], key=value["text"])


def read_text(file: Path) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 if it begins with their mark, without the mark
    and with line ends as \\n. Raises OssiaError if it is in neither, OSError if it cannot be read.
    """
    with file.open("rb") as opened:
        encoding = _encoding(opened.read(4))
    try:
        return file.read_text(encoding=encoding)
    except UnicodeError as error:
        raise _not_text(str(file), error) from error


def json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank, in an encoding that `read_text` reads.
    Raises OssiaError for invalid JSON.
    """
    for number, line in enumerate(_lines(file), start=1):
        where = f"{file}, line {number}"
        if len(line) > _LONGEST_LINE:
            raise OssiaError(f"{where}: longer than {_LONGEST_LINE >> 20} MiB")
        try:
            value = json.loads(line.decode()) if line.strip() else None
        except UnicodeDecodeError as error:
            raise _not_text(where, error) from error
        except json.JSONDecodeError as error:
            problem = f"{error.msg}, column {error.colno}"
            if line.lstrip().startswith(b"[") and number == 1:
                problem += "; an array over several lines: jq -c '.[]' writes JSON lines"
            raise OssiaError(f"{where}: not JSON ({problem})") from error
        except (ValueError, RecursionError) as error:
            raise OssiaError(f"{where}: not JSON ({error})") from error
        if line.strip():
            yield number, value


def json_list(file: Path) -> list[Any] | None:
    """The list that is the whole content of a JSON file; None for a file of anything else."""
    with file.open("rb") as opened:
        encoding = _encoding(opened.read(4))
    with file.open(encoding=encoding, errors="replace") as opened:
        if opened.read(_MOST_SPACE).lstrip()[:1] != "[":
            return None
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _lines(file: Path) -> Iterator[bytes]:
    """The lines in UTF-8, each cut off soon after the length that is too long."""
    with file.open("rb") as opened:
        encoding = _encoding(opened.read(4))
        opened.seek(0)
        if encoding == _UTF8:
            first = opened.readline(_LONGEST_LINE + 4).removeprefix(codecs.BOM_UTF8)
            yield from itertools.chain(
                [first], iter(lambda: opened.readline(_LONGEST_LINE + 1), b"")
            )
            return
        text = io.TextIOWrapper(opened, encoding=encoding, newline="\n")
        try:
            while line := text.readline(_LONGEST_LINE + 1):
                yield line.encode("utf-8", "surrogatepass")
        except UnicodeError as error:
            raise _not_text(str(file), error) from error


def _encoding(start: bytes) -> str:
    """The encoding by the mark with which a file begins."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else _UTF8


def _not_text(where: str, error: UnicodeError) -> OssiaError:
    if isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8":
        return OssiaError(f"{where}: not UTF-8 text (byte {error.start})")
    return OssiaError(f"{where}: not the text in UTF-16 or UTF-32 that its first bytes announce")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
