"""The letters of the options that a reply chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ossia.eval.scoring import reading

_MARKED = r"(?:(?:option|choice|answer)\s+)?[(\[{]?\s*([A-Z])\s*[)\]}]?(?![A-Za-z'])"
_LETTER = re.compile(rf"(?<![A-Za-z']){_MARKED}")
_NEGATED = re.compile(
    rf"\b(?:not|rather\s+than|instead\s+of|isn't|neither|nor)\s+(?i:{_MARKED})", re.IGNORECASE
)
_VERDICT = re.compile(
    rf"(?<![A-Za-z']){_MARKED}\s+is\s+(?:(?:the|therefore|thus|clearly)\s+)*(?:correct|right|best)"
)
_REJECTED = re.compile(
    rf"(?<![A-Za-z']){_MARKED}\s+is\s+(?:not\b|wrong|incorrect|false)[^,.\n;]*", re.IGNORECASE
)
_PICKED = re.compile(
    rf"\b(?:choose|pick|select|say|go\s+with|[Ii]t\s+(?:is|must\s+be)|[Ii]t's)\s+(?:the\s+)?{_MARKED}"
)
_NAMED = r"(?:(?i:option|choice|answer)\s+)?"
_WHOLE = re.compile(rf"[\s(\[{{*\"']*{_NAMED}[(\[]?([A-Za-z])[\s)\]}}.:,*\"']*")
_LEADING = re.compile(rf"[\s(\[*]*{_NAMED}[(\[]?([A-Z])\s*[)\].:]+\s")
_ARTICLE = re.compile(r"\s+(?!(?:and|or|is|are|but|because|since|not)\b)[a-z]")
_JOINED = re.compile(
    r"\s*(?:,|;|and|or|&|\+|/)+\s*(?:and|or)?\s*(?:option\s+)?[(\[]?", re.IGNORECASE
)


def answer(reply: str, choices: Sequence[str] = ()) -> frozenset[str] | None:
    """The letters that a reply chooses, usually one; None if it is not clear.

    choices: the options' texts; a reply may repeat one of them in place of its letter.
    """
    text = reading.plain(reply).strip()
    most = chr(ord("A") + len(choices) - 1) if choices else "Z"
    stated = reading.stated(text)
    found = _chosen(text if stated is None else stated, most, is_statement=stated is not None)
    if found:
        return found
    named = [i for i, choice in enumerate(choices) if _same(choice, stated or text)]
    return frozenset(chr(ord("A") + i) for i in named) if len(named) == 1 else None


def letters(text: str) -> frozenset[str]:
    """The letters of an answer on file, such as C or AC."""
    return frozenset(re.findall("[A-Z]", text.upper()))


def _same(choice: str, words: str) -> bool:
    def folded(text: str) -> str:
        return " ".join(reading.plain(text).casefold().split()).strip(" .*\"'")

    return folded(choice) == folded(words)


def _chosen(text: str, most: str, *, is_statement: bool) -> frozenset[str]:
    """The letters chosen in a statement of the answer, or in a whole reply."""
    if (whole := _WHOLE.fullmatch(text)) and whole[1].upper() <= most:
        return frozenset(whole[1].upper())
    text = _REJECTED.sub(" ", _NEGATED.sub(" ", text))
    if is_statement:
        return _listed(text, most, 0)
    for pattern in (_VERDICT, _PICKED):
        if found := list(pattern.finditer(text)):
            return _listed(text, most, found[-1].start(1))
    if (lead := _LEADING.match(text)) and "\n" not in text:
        return _listed(text, most, lead.start(1))
    line = reading.last_line(text)
    if (whole := _WHOLE.fullmatch(line)) and whole[1].upper() <= most:
        return frozenset(whole[1].upper())
    lead = _LEADING.match(f"{line} ")
    return frozenset(lead[1]) if lead and lead[1] <= most else frozenset()


def _listed(text: str, most: str, start: int) -> frozenset[str]:
    """The first letter from a place on, and those that are joined to it."""
    found: list[re.Match[str]] = []
    for match in _LETTER.finditer(text, max(0, start - 1) if start else 0):
        if match[1] > most or _is_word(text, match):
            continue
        if found and not _JOINED.fullmatch(text[found[-1].end() : match.start()]):
            break
        found.append(match)
    return frozenset(match[1] for match in found)


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether an A or I is the article or the pronoun: bare, and before a word."""
    bare = match[0].strip() == match[1]
    return bare and match[1] in "AI" and _ARTICLE.match(text, match.end()) is not None
