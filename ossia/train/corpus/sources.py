"""The corpus that `--data` names, and which part of it is never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ossia.errors import OssiaError
from ossia.train.corpus import documents, stdlib
from ossia.train.corpus.documents import Corpus, Document

# Of several texts one in twenty is held out, of a single text its last twentieth.
_HELD_OUT_SHARE = 20
_HELD_OUT_BELOW = 2**256 // _HELD_OUT_SHARE  # as a hash


def read(source: str) -> Corpus:
    """The texts of `source`: the word "stdlib", or files as `documents.read` reads them.

    The standard library holds out modules that it names. Of a single text the last twentieth is
    held out; of several, each whose hash (of a file's name, or a line's text) is among the lowest
    twentieth of all hashes, so that adding texts moves none, or else the one with the lowest hash.
    Raises OssiaError for a source that cannot be read, or is too small to hold anything out.
    """
    if source == stdlib.NAME:
        return stdlib.read()
    found = documents.read(source, "--data")
    if len(found) == 1:
        return _split_text(found[0])
    return _split_documents(found, source)


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
