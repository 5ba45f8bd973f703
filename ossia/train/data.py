"""Text becomes two memory-mapped rows of token ids, one to train on and one held out, and batches
are a function of the step.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ossia.errors import OssiaError

STDLIB = "stdlib"  # as --data: the source of the running Python's standard library

# Tests, programs that are not a library, what pip or a distribution adds, and tables of data
# written as code.
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
_HELD_OUT_SHARE = (
    20  # of other folders one file in twenty is held out, of a single file its last twentieth
)


@dataclass(frozen=True)
class Document:
    """A text and the name it goes by in messages and records."""

    name: str
    text: str

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
    (hidden ones are passed over).

    The named modules of the standard library are held out, of a folder one file in twenty (chosen
    by the hash of its name, so that adding files moves none), of a file its last twentieth. Raises
    OssiaError for a source that is absent, empty, not UTF-8, or too small to hold anything out.
    """
    if source == STDLIB:
        return _read_stdlib()
    path = Path(source)
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.is_file()]
        names = {f: f.relative_to(path).as_posix() for f in files}
        documents = [
            _document(file, name)
            for file, name in names.items()
            if not any(part.startswith(".") for part in Path(name).parts)
        ]
    elif path.is_file():
        documents = [_document(path, path.name)]
    else:
        raise OssiaError(f"--data {source}: no such file or folder (nor the word {STDLIB})")
    documents = [document for document in documents if document.text]
    if not documents:
        raise OssiaError(f"--data {source}: holds no text")
    if len(documents) == 1:
        return _split_text(documents[0])
    return _split_files(documents)


def stdlib_documents(root: Path | None = None) -> list[Document]:
    """The modules of the standard library that are worth learning from, by name; `root` is the
    running Python's unless given.
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
    return [document for document in documents if document.text]


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


def _document(file: Path, name: str) -> Document:
    try:
        return Document(name, file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise OssiaError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise OssiaError(f"{file}: {error.strerror}") from error


def _split_text(document: Document) -> Corpus:
    text = document.text
    cut = text.rfind("\n", 0, len(text) - len(text) // _HELD_OUT_SHARE) + 1
    if not text[:cut].strip() or not text[cut:].strip():
        raise OssiaError(f"{document.name}: too few lines to hold the last twentieth out")
    return Corpus((Document(document.name, text[:cut]),), (Document(document.name, text[cut:]),))


def _split_files(documents: list[Document]) -> Corpus:
    order = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    count = max(1, len(order) // _HELD_OUT_SHARE)
    held_out = {document.name for document in order[:count]}
    return Corpus(
        tuple(d for d in documents if d.name not in held_out),
        tuple(d for d in documents if d.name in held_out),
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


def encode(documents: Iterable[Document], tokenizer: Tokenizer, separator: int) -> Tensor:
    """int32 (tokens,): each document after a `separator`, so that a text's first token is predicted
    from it.
    """
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False):
        ids.append(separator)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int32)


def write_tokens(tokens: Tensor, file: Path) -> None:
    """Write ids as raw little-endian int32, whole or not at all."""
    write_bytes(file, tokens.to(torch.int32).numpy().tobytes())


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def map_tokens(file: Path, count: int) -> Tensor:
    """int32 (count,) as they lie in the file, read when touched."""
    if not file.is_file() or file.stat().st_size != count * torch.int32.itemsize:
        raise OssiaError(f"{file}: the run's {count} tokens are gone or damaged; start it anew")
    return torch.from_file(str(file), shared=False, size=count, dtype=torch.int32)


class Batches:
    """Batches by number, the same whenever they are asked for: a run that resumes needs no position
    but its step.

    Each pass over the text cuts it into windows of `length` tokens from a random offset and visits
    them in random order, both drawn from `seed` and the number of the pass.
    """

    def __init__(self, tokens: Tensor, batch_size: int, length: int, seed: int) -> None:
        if len(tokens) < 2 * length + 1:
            raise OssiaError(
                f"the text has {len(tokens)} tokens, too few for windows of {length}; "
                "use a shorter --length or more text"
            )
        self.tokens, self.batch_size, self.length, self.seed = tokens, batch_size, length, seed
        self.windows = (
            len(tokens) - 1
        ) // length - 1  # whole windows after any offset below `length`
        self._pass = -1
        self._starts = torch.empty(0, dtype=torch.int64)

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number`: int64 inputs and targets, each (batch_size, length), the targets one
        token ahead.
        """
        first = number * self.batch_size
        rows = [self._window(index) for index in range(first, first + self.batch_size)]
        windows = torch.stack(rows)
        return windows[:, :-1], windows[:, 1:]

    def _window(self, index: int) -> Tensor:
        epoch, place = divmod(index, self.windows)
        if epoch != self._pass:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            offset = torch.randint(self.length, (1,), generator=generator)
            self._starts = offset + self.length * torch.randperm(self.windows, generator=generator)
            self._pass = epoch
        start = int(self._starts[place])
        return self.tokens[start : start + self.length + 1].long()
