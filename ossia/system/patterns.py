"""Patterns of regular expressions that come from files: which could take exponential time."""

from __future__ import annotations

import re


def exponential(pattern: str) -> str | None:
    """What could make a backtracking search take exponential time; None if there is nothing.

    A search takes at most polynomial time if nothing that can match in several ways is repeated:
    no repetition or alternative stands in a repeated group.
    """
    ambiguous = [False]  # for the whole, and for each open group: can it match in several ways?
    position = 0
    for match in _TOKEN.finditer(pattern):
        if match.start() != position:
            break
        position = match.end()
        kind = match.lastgroup
        if kind == "reference":
            return "a reference to a group"
        if kind == "open":
            ambiguous.append(False)
        elif kind == "close":
            if len(ambiguous) == 1:
                return None  # the library refuses it
            inside = ambiguous.pop()
            repeated = _REPEAT.match(pattern, position)
            if inside and repeated and _most(repeated[0]) > 1:
                return "a repeated group that can match in several ways"
            ambiguous[-1] |= inside
        elif kind == "alternative" or (kind == "repeat" and not _FIXED.fullmatch(match[0])):
            ambiguous[-1] = True
    return None


_TOKEN = re.compile(
    r"""(?P<reference>\\[1-9]|\\[gk][<'])
    |(?P<escape>\\.)
    |(?P<set>\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\])
    |(?P<open>\((?:\?(?:[:=!>]|<[=!]|<\w+>|[a-zA-Z-]*[:)])?)?)
    |(?P<close>\))
    |(?P<alternative>\|)
    |(?P<repeat>[*+?][+?]?|\{\d*,?\d*\}[+?]?)
    |(?P<literal>.)""",
    re.VERBOSE | re.DOTALL,
)
_REPEAT = re.compile(r"[*+?][+?]?|\{\d*,?\d*\}[+?]?")
_FIXED = re.compile(r"\{\d+\}")


def _most(repeat: str) -> float:
    """How often a quantifier matches at most."""
    if repeat[0] == "?":
        return 1
    if repeat[0] in "*+":
        return float("inf")
    last = repeat.strip("{}+?").rpartition(",")[2]
    return int(last) if last else float("inf")
