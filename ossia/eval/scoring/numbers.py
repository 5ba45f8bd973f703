"""The number that a reply gives as its answer, exactly: fractions, percentages, units and all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ossia.eval.scoring import reading

_DIGITS = r"(?:\d+(?:[.,' ]\d{3}(?!\d))*(?:[.,]\d+)?|\.\d+)"
_RAISED = r"\^\s*[{(]?\s*[+-]?\d+\s*[})]?"
_VALUE = re.compile(
    rf"""(?<![A-Za-z_\d])(?<![A-Za-z]-)
    (?P<sign>(?:(?<![\w)])-|\+|minus\s+|negative\s+)\s*)?
    [$\u20ac\u00a3\u00a5]?\s*
    (?:(?P<whole>\d+)[ ]+(?=\d+\s*/\s*\d))?
    (?P<number>{_DIGITS})
    (?:\s*/\s*(?P<denominator>-?{_DIGITS}))?
    (?:[eE](?P<exponent>[+-]?\d+)(?!\w)|\s*\*\s*10\s*(?P<ten>{_RAISED})|(?P<power>{_RAISED}))?
    [ ]?(?P<percent>%|percent\b|per\ cent\b)?
    (?:[ ]?(?P<unit>[A-Za-z\u00b5\u03bc]+)(?![A-Za-z]))?""",
    re.VERBOSE | re.IGNORECASE,
)
_NEGATED = re.compile(
    rf"\b(?:not|rather\s+than|instead\s+of|isn't|neither)\s+(?:[a-z]+\s+)?{_VALUE.pattern}",
    re.VERBOSE | re.IGNORECASE,
)
_BETWEEN_SEVERAL = re.compile(r"[\s*]*(?:,|;|or|and|to|-|/|\+|\*)[\s*]*", re.IGNORECASE)
_REASON = re.compile(
    r",?\s*\b(?:because|since|as|where|when|if|for)\b.*", re.DOTALL | re.IGNORECASE
)
_ROOT = re.compile(r"(?:\\sqrt\s*(?:\[\d+\])?|\u221a)\s*[{(]?\s*$")  # before a number
_FACTOR = re.compile(r"\s*\*?\s*(?:\\pi(?![a-zA-Z])|\\sqrt|[\u03c0\u221a])")  # after it
_MOST_POWER = 400

# Units that convert into each other, as the base unit of each kind and how many of it there are.
_UNITS = {
    **{u: ("m", Fraction(n)) for u, n in (("km", 1000), ("m", 1), ("meter", 1), ("metre", 1))},
    **{u: ("m", Fraction(1, n)) for u, n in (("dm", 10), ("cm", 100), ("mm", 1000))},
    **{u: ("m", Fraction(1000)) for u in ("kilometer", "kilometre")},
    **{u: ("m", Fraction(1, 100)) for u in ("centimeter", "centimetre")},
    **{u: ("m", Fraction(1, 1000)) for u in ("millimeter", "millimetre")},
    **{u: ("g", Fraction(1000)) for u in ("kg", "kilogram")},
    **{u: ("g", Fraction(1)) for u in ("g", "gram")},
    **{u: ("g", Fraction(1, 1000)) for u in ("mg", "milligram")},
    **{u: ("s", Fraction(1)) for u in ("s", "sec", "second")},
    **{u: ("s", Fraction(60)) for u in ("min", "minute")},
    **{u: ("s", Fraction(3600)) for u in ("h", "hr", "hour")},
    **{u: ("s", Fraction(86400)) for u in ("d", "day")},
    **{u: ("s", Fraction(1, 1000)) for u in ("ms", "millisecond")},
    **{u: ("l", Fraction(1)) for u in ("l", "liter", "litre")},
    **{u: ("l", Fraction(1, 1000)) for u in ("ml", "milliliter", "millilitre")},
}


@dataclass(frozen=True)
class Quantity:
    """A number as it was written: 25 % has the value 25 and is a percentage; 5 km has the unit m
    and the factor 1000.
    """

    value: Fraction
    percent: bool = False
    unit: str | None = None
    factor: Fraction = Fraction(1)

    def equals(self, other: Quantity, tolerance: float) -> bool:
        """Whether a reply that gives this number is right if `other` is on file.

        A percentage also equals its share, and the bare number where the percentage is on file.
        Units are compared where both have a known one.
        """
        if self.unit is not None and other.unit is not None:
            if self.unit != other.unit:
                return False
            pairs = [(self.value * self.factor, other.value * other.factor)]
        else:
            pairs = [(self.value, other.value)]
        if self.percent and not other.percent:
            pairs.append((self.value / 100, other.value))
        if other.percent and not self.percent:
            pairs.append((self.value, other.value / 100))
        return any(abs(a - b) <= Fraction(tolerance) * abs(b) for a, b in pairs)

    def __str__(self) -> str:
        shown = self.value * self.factor
        exact = str(shown.numerator) if shown.denominator == 1 else f"{shown}"
        return exact + ("%" if self.percent else "") + (f" {self.unit}" if self.unit else "")


def answer(reply: str) -> Quantity | None:
    """The number that a reply states as its answer: in a box, after ####, after words such as "the
    answer is", or else the last one. None without a number, and where several are stated.
    """
    text = reading.plain(reply)
    words = reading.stated(text)
    if words is not None:
        return _stated(words)
    text = _NEGATED.sub(" ", text)
    found = [match for match in _VALUE.finditer(text) if _quantity(match) is not None]
    if not found:
        return None
    if len(found) > 1 and _are_several(text, found[-2], found[-1]):
        return None
    return _quantity(found[-1])


def parse(text: str) -> Quantity | None:
    """A number on file; None if it is none."""
    match = _VALUE.fullmatch(reading.plain(text).strip())
    return _quantity(match) if match else None


def _stated(words: str) -> Quantity | None:
    """The number in a statement, which may be the last of several equal expressions."""
    words = _REASON.sub("", _NEGATED.sub(" ", words))
    parts = words.split("=")
    found = _values(parts[-1])
    if len(parts) > 1 and len(found) != 1:  # 8 = 5 + 3
        found = _values(parts[0])
        if len(found) != 1:
            return None
    if not found:
        return None
    source = found[0].string
    if len(found) > 1 and _are_several(source, found[0], found[1]):
        return None
    return _quantity(found[0])


def _values(text: str) -> Sequence[re.Match[str]]:
    return [match for match in _VALUE.finditer(text) if _quantity(match) is not None]


def _are_several(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two numbers that follow each other are two answers, or parts of a sum."""
    first, second = _quantity(one), _quantity(other)
    if first is None or second is None or first.equals(second, 1e-9):
        return False
    # The word after a number is taken for its unit, and may be the "or" before the next.
    between = (one["unit"] or "") + text[one.end() : other.start()] + (other["sign"] or "")
    return _BETWEEN_SEVERAL.fullmatch(between.strip()) is not None


def _quantity(match: re.Match[str]) -> Quantity | None:
    if _FACTOR.match(match.string, match.end()) or _ROOT.search(
        match.string[: match.start()][-12:]
    ):
        return None  # a part of a number that is not rational
    value = _decimal(match["number"])
    if value is None:
        return None
    if match["denominator"]:
        denominator = _decimal(match["denominator"].lstrip("-"))
        if not denominator:
            return None
        value /= -denominator if match["denominator"].startswith("-") else denominator
    if match["whole"]:
        value += int(match["whole"])
    if match["exponent"] or match["ten"]:
        exponent = _integer(match["exponent"] or match["ten"])
        if abs(exponent) > _MOST_POWER:
            return None
        value *= Fraction(10) ** exponent
    if match["power"]:
        exponent = _integer(match["power"])
        if abs(exponent) > _MOST_POWER or (exponent < 0 and not value):
            return None
        value **= exponent
    if (match["sign"] or "").strip().lower() in ("-", "minus", "negative"):
        value = -value
    unit, factor = _unit(match["unit"])
    return Quantity(value, match["percent"] is not None, unit, factor)


def _unit(written: str | None) -> tuple[str | None, Fraction]:
    """The base unit and the factor to it; neither for a word that is no known unit."""
    name = written or ""
    for candidate in (name, name.lower(), name.lower().removesuffix("s")):
        if candidate in _UNITS and (len(name) > 2 or candidate == name):
            return _UNITS[candidate]
    return None, Fraction(1)


def _integer(text: str) -> int:
    return int(re.sub(r"[^\d+-]", "", text)[:6])


def _decimal(text: str) -> Fraction | None:
    """A number with thousands separators and a point or comma; None if it is not clear which."""
    text = text.replace("'", "").replace(" ", "")
    if len(text) > 2 * _MOST_POWER:
        return None
    marks = [c for c in text if c in ".,"]
    if len(set(marks)) == 2:  # the last is the decimal one
        thousands = marks[0]
        if marks[-1] == thousands or marks.count(marks[-1]) > 1:
            return None
        return Fraction(text.replace(thousands, "").replace(",", "."))
    if len(marks) > 1 or (marks == [","] and re.search(r",\d{3}$", text)):
        groups = re.split("[.,]", text)
        if len(groups[0]) > 3 or any(len(group) != 3 for group in groups[1:]):
            return None
        return Fraction("".join(groups))
    return Fraction(text.replace(",", "."))
