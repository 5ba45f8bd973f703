"""Pictures of texts: a conversation as its tokens, and the pages that hold keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ossia.insight.drawing import Drawing, measure
from ossia.insight.svg import Heading

_WIDTH = 560.0
_ROW = 21.0  # from one line to the next
_PAD = 4.0  # left and right of a run
_PAGE, _PAGE_GAP = 25.0, 3.0
_LEGEND = 18.0


@dataclass(frozen=True)
class Run:
    """A control token, or the text between two. generated: the model wrote it."""

    text: str
    control: bool = False
    generated: bool = False


def conversation(messages: Sequence[Sequence[Run]], name: str = "conversation") -> str:
    """Each message from a line of its own, in several where it is too long."""
    drawing = Drawing(_WIDTH)
    y = 0.0
    for message in messages:
        x = 0.0
        for run in message:
            lines = [run.text] if run.control else _lines(run.text, _WIDTH - x)
            for i, line in enumerate(lines):
                width = measure(line) + 2 * _PAD
                if i or x + width > _WIDTH:
                    x, y = 0.0, y + _ROW
                if run.generated:
                    drawing.rect((x, y), (width, 17), "cache pale")
                if run.control:
                    drawing.rect((x, y), (width, 17), "mark pale", 4)
                drawing.text((x + _PAD, y + 12.5), line)
                x += width
        y += _ROW + 7
    for x, kind, text in ((0.0, "mark pale", "control token"), (130.0, "cache pale", "generated")):
        drawing.rect((x, y), (12, 12), kind, 3)
        drawing.text((x + 18, y + 10), text, "small quiet")
    spoken = " ".join("".join(run.text for run in message) for message in messages)
    return drawing.finish(Heading(name, "A conversation in harmony", spoken), y + _LEGEND)


def _lines(text: str, first: float) -> list[str]:
    """The text in lines, the first of which has less room. Empty lines are left out."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        begun = False
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}" if begun else word
            room = first if len(lines) <= 1 else _WIDTH
            if begun and measure(longer) + 2 * _PAD <= room:
                lines[-1] = longer
            else:
                lines.append(word)
                begun = True
    return lines


@dataclass(frozen=True)
class PagedRow:
    """The pages of one text, of which the first `shared` were cached."""

    title: str
    detail: str
    pages: Sequence[int]
    shared: int


def pages(rows: Sequence[PagedRow], name: str = "pages") -> str:
    """A line of pages for each text, with their numbers; those that it shares are filled."""
    most = max(len(row.pages) for row in rows)
    across = max(measure(row.title, "bold") for row in rows) + 14
    drawing = Drawing(across + most * (_PAGE + _PAGE_GAP) - _PAGE_GAP)
    y = 0.0
    for row in rows:
        drawing.text((0, y + 15), row.title, "bold")
        for i, page in enumerate(row.pages):
            left = across + i * (_PAGE + _PAGE_GAP)
            kind = "cache half" if i < row.shared else "plain"
            drawing.rect((left, y), (_PAGE, 22), kind, 3)
            drawing.text((left + _PAGE / 2, y + 15), str(page), "small", anchor="middle")
        drawing.text((across, y + 37), row.detail, "small quiet", room=drawing.width - across)
        y += 54
    drawing.rect((0, y), (12, 12), "cache half", 3)
    drawing.text((18, y + 10), "cached: not computed again", "small quiet")
    spoken = "; ".join(f"{row.title}: {row.detail}" for row in rows)
    return drawing.finish(Heading(name, "Pages that texts share", f"{spoken}."), y + _LEGEND)
