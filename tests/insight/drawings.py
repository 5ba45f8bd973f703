"""Reads drawings back: their shapes, and where their texts lie."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from ossia.insight.drawing import measure

SVG = "{http://www.w3.org/2000/svg}"


def parse(drawing: str) -> ElementTree.Element:
    if "xmlns=" not in drawing:
        drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return ElementTree.fromstring(drawing)


@dataclass(frozen=True)
class Box:
    words: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across > 0.5 and down > 0.5


def texts(root: ElementTree.Element) -> Iterator[Box]:
    """The boxes of all texts, from the lowest descender to the highest capital."""
    for element in root.iter(f"{SVG}text"):
        kind = element.get("class") or ""
        words = "".join(element.itertext()).removeprefix(element.findtext(f"{SVG}title") or "")
        width = measure(words, kind)
        anchor = {"middle": 0.5, "end": 1.0}.get(element.get("text-anchor") or "", 0.0)
        x, y = place(element)
        left = x - anchor * width
        yield Box(words, left, y - 9, left + width, y + 2.5)


def place(element: ElementTree.Element) -> tuple[float, float]:
    return float(element.get("x") or 0), float(element.get("y") or 0)


def size(element: ElementTree.Element) -> tuple[float, float]:
    return float(element.get("width") or 0), float(element.get("height") or 0)


def rects(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == kind]


def troubles(root: ElementTree.Element) -> list[str]:
    """Texts that lie on one another, or outside the drawing."""
    left, top, width, height = (float(x) for x in (root.get("viewBox") or "").split())
    boxes = list(texts(root))
    found = [f"{a.words} | {b.words}" for a, b in combinations(boxes, 2) if a.overlaps(b)]
    for box in boxes:
        if box.left < left - 1 or box.right > left + width + 1:
            found.append(f"{box.words} is beside the drawing")
        if box.top < top - 1 or box.bottom > top + height + 1:
            found.append(f"{box.words} is above or below the drawing")
    return found
