"""A drawing as SVG: shapes and fitted text, inside a page or as a file that stands alone.

Text is measured by the widths of DejaVu Sans, one of the widest fonts that browsers fall back to,
so that what fits here fits there. Colours are variables of the page's style, and a file carries
both of its colour schemes.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ossia.insight.svg import Heading

# Widths of characters in thousandths of the font's size, rounded up.
_WIDTHS = {
    character: width
    for width, characters in {
        300: "'IJijl",
        350: " ,./:;\\f|·\N{NO-BREAK SPACE}",
        400: "!()-[]t",
        450: '"r',
        500: "*_`\N{EN DASH}",
        550: "?Lcsz",
        600: "FPkvxy",
        650: "0123456789$EKSTYabdeghnopqu{}θ",
        700: "ABCRVXZ",
        750: "HNU",
        800: "&DGOQ",
        850: "#+<=>^w~±→\N{MULTIPLICATION SIGN}\N{MINUS SIGN}",
        900: "M",
        950: "%",
    }.items()
    for character in characters
}
_OTHER = 1000
_BOLD = 1.12  # times as wide
SIZE = 11.5  # of text, and of small text
SMALL = 10.0
LINE = 15.0  # from one line of text to the next

STYLE = (
    """
svg.drawing { display: block; height: auto; font-size: 11.5px; overflow: visible; }
svg.drawing text { fill: var(--ink); }
svg.drawing text.small { font-size: 10px; }
svg.drawing text.quiet { fill: var(--quiet); }
svg.drawing text.bold { font-weight: 600; }
svg.drawing .frame { fill: none; stroke: var(--edge); }
svg.drawing .plain { fill: var(--paper); stroke: var(--edge); }
svg.drawing .wire { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
svg.drawing .grid { stroke: var(--grid); }
svg.drawing .ink { fill: var(--ink); }
svg.drawing .mark { fill: var(--mark); }
svg.drawing text.mark { fill: var(--mark-ink); }
svg.drawing .changed { fill: var(--mark); fill-opacity: .1; stroke: var(--mark); }
svg.drawing .embedding { fill: var(--embedding); }
svg.drawing .attention { fill: var(--attention); }
svg.drawing .network { fill: var(--network); }
svg.drawing .router { fill: var(--router); }
svg.drawing .unembedding { fill: var(--unembedding); }
svg.drawing .cache { fill: var(--cache); }
svg.drawing .sink { fill: var(--router); }
svg.drawing .pale { fill-opacity: .24; }
svg.drawing .half { fill-opacity: .55; }
svg.drawing .series { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""
    + "".join(
        f"svg.drawing .m{i} {{ stroke: var(--m{i}); stroke-dasharray: {dashes}; }}"
        f" svg.drawing .dot.m{i} {{ fill: var(--m{i}); stroke-dasharray: none; }}"
        f" svg.drawing text.m{i} {{ fill: var(--m{i}); }}\n"
        for i, dashes in enumerate(("none", "7 3", "2 3", "10 3 2 3", "4 2", "1 2"))
    )
    + """svg.drawing text.end { stroke: var(--paper); stroke-width: 3px; stroke-dasharray: none;
  paint-order: stroke; }
"""
)
LIGHT = (
    "--mark: #c2410c; --mark-ink: #a8380a; --embedding: #7d8899; --attention: #2f74c0; "
    "--network: #e0862a; --router: #a3479a; --unembedding: #3f9468; --cache: #3aa3a8; "
    "--m0: #0b5cad; --m1: #b3420a; --m2: #4f7000; --m3: #8a2f86; --m4: #00706f; --m5: #6b5a00;"
)
DARK = (
    "--mark: #f59e5b; --mark-ink: #f7b27e; --embedding: #8e9aac; --attention: #62a3ea; "
    "--network: #eda04e; --router: #cf82c7; --unembedding: #62bd8d; --cache: #5cc7cb; "
    "--m0: #74b3f5; --m1: #f0965f; --m2: #b2d04a; --m3: #e08fdc; --m4: #5fd0cc; --m5: #dcc65a;"
)
# For a file that no page surrounds; a page has these in its own style.
_GROUND = (
    "--ink: #1d2025; --quiet: #5d636c; --paper: #fbfbf9; --edge: #c9c9c3; --grid: #dcdcd8;",
    "--ink: #e7e8ea; --quiet: #a3a9b2; --paper: #16181c; --edge: #4a4e55; --grid: #3a3d42;",
)
_MARGIN = 16  # around a file's drawing
_EDGE = 1  # around a page's, for half of a line's width


class Drawing:
    """Shapes and text of given classes (see `STYLE`), in units of about a pixel."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._parts: list[str] = []

    def rect(
        self, place: tuple[float, float], size: tuple[float, float], kind: str, radius: float = 0
    ) -> None:
        """place: the upper left corner, (x, y); size: (width, height)."""
        x, y = place
        width, height = size
        round_ = f' rx="{_n(radius)}"' if radius else ""
        self._parts.append(
            f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" '
            f'height="{_n(height)}"{round_}/>'
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        self.path(f"M{_n(start[0])} {_n(start[1])}L{_n(end[0])} {_n(end[1])}", kind)

    def polyline(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        written = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._parts.append(f'<polyline class="{kind}" points="{written}"/>')

    def polygon(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        written = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._parts.append(f'<polygon class="{kind}" points="{written}"/>')

    def path(self, data: str, kind: str) -> None:
        self._parts.append(f'<path class="{kind}" d="{data}"/>')

    def circle(self, centre: tuple[float, float], radius: float, kind: str) -> None:
        self._parts.append(
            f'<circle class="{kind}" cx="{_n(centre[0])}" cy="{_n(centre[1])}" r="{_n(radius)}"/>'
        )

    def text(
        self,
        place: tuple[float, float],
        text: str,
        kind: str = "",
        *,
        anchor: str = "start",
        room: float | None = None,
    ) -> None:
        """place: of the baseline. A text wider than `room` is cut in its middle, and the whole of
        it shown where a pointer rests.
        """
        shown = text if room is None else shortened(text, room, kind)
        whole = f"<title>{escape(text)}</title>" if shown != text else ""
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        named = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text{named} x="{_n(place[0])}" y="{_n(place[1])}"{at}>{whole}{escape(shown)}</text>'
        )

    def finish(self, heading: Heading, height: float) -> str:
        """The drawing as an element of a page."""
        name, width = heading.name, self.width + 2 * _EDGE
        return (
            f'<svg class="drawing" viewBox="{-_EDGE} {-_EDGE} {_n(width)} '
            f'{_n(height + 2 * _EDGE)}" role="img" '
            f'style="width: 100%; min-width: {_n(self.width * 0.72)}px; '
            f'max-width: {_n(self.width * 1.45)}px" '
            f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(heading.title)}</title>'
            f'<desc id="{name}d">{escape(heading.description)}</desc>{"".join(self._parts)}</svg>'
        )


def standalone(drawing: str) -> str:
    """A finished drawing as a file of its own, on ground of its own, in both colour schemes."""
    head, _, rest = drawing.partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    width, height = (float(x) for x in box.split()[2:])
    wide, high = width + 2 * _MARGIN, height + 2 * _MARGIN
    tail = head.partition('role="img"')[2].partition("aria-")[2]
    style = (
        f":root {{ color-scheme: light dark; {_GROUND[0]} {LIGHT} }} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_GROUND[1]} {DARK} }} }} "
        f"svg {{ font-family: system-ui, sans-serif; }} {STYLE}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" width="{_n(wide)}" '
        f'height="{_n(high)}" viewBox="{-_MARGIN} {-_MARGIN} {_n(wide)} {_n(high)}" role="img" '
        f'aria-{tail}><style>{style}</style><rect x="{-_MARGIN}" y="{-_MARGIN}" '
        f'width="{_n(wide)}" height="{_n(high)}" style="fill: var(--paper)"/>{rest}\n'
    )


def measure(text: str, kind: str = "") -> float:
    """The width of a text, at most, in a drawing's units."""
    words = kind.split()
    size = SMALL if "small" in words else SIZE
    width = sum(_WIDTHS.get(character, _OTHER) for character in text) * size / 1000
    return width * _BOLD if "bold" in words else width


def shortened(text: str, room: float, kind: str = "") -> str:
    """The text, or as much of its beginning and end as fits around an ellipsis."""
    if measure(text, kind) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        start = (kept + 1) // 2
        shown = f"{text[:start].rstrip()}…{text[len(text) - (kept - start) :].lstrip()}"
        if measure(shown, kind) <= room:
            return shown
    return "…"


def wrapped(text: str, room: float, kind: str = "") -> list[str]:
    """The text in lines that fit, broken at line breaks and between words; a word that does not fit
    is shortened.
    """
    if "\n" in text:
        return [line for part in text.split("\n") for line in wrapped(part, room, kind)]
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and measure(longer, kind) <= room:
            lines[-1] = longer
        else:
            lines.append(shortened(word, room, kind))
    return lines


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
