"""Bounds on a tokenizer's work, checked when its file is read: a hostile tokenizer.json can hold
patterns that take exponential time and normalizers that multiply a text.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from ossia.errors import OssiaError, shortened
from ossia.system.patterns import exponential

MOST_BYTES = 64 << 20  # of tokenizer.json; the largest known has 34 MB
_MOST_GROWTH = 8  # of a text by all normalizers together; Unicode's own forms do not count
_LENGTHS = (32, 48, 72, 108, 162, 243, 365, 547, 820)  # of probes, in characters
_SECONDS = 0.25  # of the processor for a probe; real tokenizers take less than a millisecond
_COMMON = "aA1 \n!'_"
_PROVEN = frozenset(  # SHA-256 of the patterns of Qwen3, gpt-oss and the model in the package
    {
        "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e",
        "2d1b8dc11e89af71459b36004f698ab3693f59fd84f63e8ec2b49564ab857420",
        "ae9107185262d3e94c2d6d0e854541f2a1b82b3d8a3093967ca62bede2854ae7",
    }
)

# Normalizers that lengthen a text by a small factor at most, however often they stand.
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "ByteLevel")
_BOUNDED = frozenset(
    {*_UNICODE_FORMS, "Lowercase", "StripAccents", "Strip", "BertNormalizer", "Sequence"}
)


def check_size(file: Path) -> None:
    """Raise OssiaError for a file that is larger than any tokenizer's."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise OssiaError(f"{file} has {size:,} bytes; at most {MOST_BYTES:,} are read")


def check(inner: tokenizers.Tokenizer, source: str) -> None:
    """Raise OssiaError, which begins with `source`, for a tokenizer whose patterns could take
    exponential time, that takes seconds for a short text, or that multiplies a text.
    """
    normalizers = list(_parts(inner.normalizer))
    growth = 1.0
    for part in normalizers:
        growth *= _growth(part, source)
    if growth > _MOST_GROWTH:
        raise OssiaError(f"{source}: its normalizers multiply a text by {growth:.3g}")
    patterns = [
        found
        for part in (*normalizers, *_parts(inner.pre_tokenizer))
        if (found := _regex(part)) is not None
        and hashlib.sha256(found.encode()).hexdigest() not in _PROVEN
    ]
    for pattern in patterns:
        if (problem := exponential(pattern)) is not None:
            raise OssiaError(
                f"{source}: its pattern {shortened(pattern)!r} has {problem}, which can take "
                "exponential time"
            )
    if patterns:
        _probe(inner, patterns, source)


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The components of a sequence of normalizers or pre-tokenizers, as the file states them."""
    if component is None:
        return
    pending = [json.loads(component.__getstate__())]
    while pending:
        part = pending.pop(0)
        inner = part.get("normalizers") or part.get("pretokenizers") or []
        pending = [*inner, *pending]
        if not inner:
            yield part


def _growth(part: dict[str, Any], source: str) -> float:
    """How much longer a normalizer can make a text."""
    kind = part.get("type")
    if kind in _BOUNDED:
        return 1.0
    if kind == "Prepend":
        return 1.0 + len(part["prepend"])
    if kind == "Replace":
        pattern, content = part["pattern"], part["content"]
        if "String" in pattern:
            return max(1.0, len(content) / max(1, len(pattern["String"])))
        return 1.0 + len(content)
    raise OssiaError(f"{source}: its normalizer {shortened(str(kind))} is unknown")


def _regex(part: dict[str, Any]) -> str | None:
    pattern = part.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _probe(inner: tokenizers.Tokenizer, patterns: list[str], source: str) -> None:
    """Encode texts that grow, so that one that takes polynomial time is found before it hangs: runs
    of one character, and whatever the patterns may wait for after them.
    """
    characters = list(dict.fromkeys([*_COMMON, *"".join(patterns)]))[:24]
    for length in _LENGTHS:
        for character in characters:
            text = character * length + "".join(characters)
            started = time.thread_time()
            inner.encode(text, add_special_tokens=False)
            if time.thread_time() - started > _SECONDS:
                raise OssiaError(
                    f"{source}: its patterns take more than {_SECONDS:g} s for {length} characters"
                )
