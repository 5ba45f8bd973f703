"""Where a reply states its answer: in a box, after a cue such as "the answer is", or at its end."""

from __future__ import annotations

import re
import unicodedata

# Replies are read only so far from their end, which bounds the time whatever a model writes.
_MOST_CHARACTERS = 20_000

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_NARROW_SPACE = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00d7\u22c5\u00b7\u2217", "*"),
        **dict.fromkeys("\u2044\u2215\u00f7", "/"),
        **dict.fromkeys("\u2018\u2019", "'"),
        "\u066b": ".",
        "\u066c": ",",
        "\u2248": "=",
    }
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}")
_COMMANDS = (
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])"), " "),
    (re.compile(r"(?<=\d)(?:\\[,;:!]|\{,\})(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[,;:! ]|~"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\approx(?![a-zA-Z])"), "="),
    (re.compile(r"\^?\s*\\circ(?![a-zA-Z])"), "\N{DEGREE SIGN}"),
    (re.compile(r"\\([%$#&_])"), r"\1"),
    (re.compile(r"\\[\[\]()]"), " "),
    (re.compile(r"(?<=\d)\*\*(?=-?\d)"), "^"),
    (re.compile(r"\*\*|__|`"), ""),
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)|\n")
_CUE = re.compile(
    r"\b(?:answer|result|correct (?:option|choice))\b"
    r"(?:(?!n't\b|\b(?:not|cannot)\b)[^\n.:=?]){0,40}?(?:\b(?:is|are|be)\b|[:=])",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?\n]\s*)(?:(?:no|wait|actually|sorry|correction)\s*[,:.!-]|scratch that|hold on)",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """The end of a reply without typography: ASCII digits and signs in place of their relatives in
    Unicode, and what a few LaTeX commands stand for.
    """
    text = text[-_MOST_CHARACTERS:]
    text = _RAISED.sub(lambda raised: "^" + raised[0].translate(_SUPERSCRIPTS), text)
    text = _NARROW_SPACE.sub(",", text)
    # Long runs of white space would cost the patterns quadratic time.
    text = "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\n"))))
    text = "".join(_character(c) for c in text).translate(_SYMBOLS)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    for _ in range(2):  # one in another
        text = _WRAPPED.sub(r"\1", text)
        text = _FRACTION.sub(r" \1\3/\2\4", text)
    return text


def _character(c: str) -> str:
    if c.isascii():
        return c
    if (digit := unicodedata.decimal(c, None)) is not None:
        return str(digit)
    folded = unicodedata.normalize("NFKC", c)
    return f" {folded}" if "\u2044" in folded else folded  # 2½ is 2 and 1/2


def boxed(text: str) -> str | None:
    """What is in the last `\\boxed{}`, with balanced braces; None if there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start) + 1
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start:end]
    return None  # the reply was cut off


def stated(text: str) -> str | None:
    """The words in which a reply (made `plain`) states its answer, without what follows them; None
    if no cue announces one.
    """
    if (inside := boxed(text)) is not None:
        return inside
    if (mark := text.rfind("####")) >= 0:
        return text[mark + 4 :].strip().split("\n")[0]
    cues = [*_CUE.finditer(text)]
    if not cues:
        return None
    cue = cues[-1]
    rest = text[cue.end() :].lstrip(" \t\n:*")
    end = _SENTENCE_END.search(rest)
    words = rest[: end.start()] if end else rest
    after = rest[end.start() :] if end else ""
    if (end and end[0] == "?") or _TAKEN_BACK.search(after):
        return None
    return words


def last_line(text: str) -> str:
    """The last line with something in it; the whole text if it is one line."""
    return next((line for line in reversed(text.split("\n")) if line.strip()), "").strip()
