"""The terminal cast of the README: what a screen shows, and the drawing of a recording."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from book.cast import draw
from book.terminal import Screen

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def shown(output: str, columns: int = 10, rows: int = 3) -> list[str]:
    screen = Screen(columns, rows)
    screen.feed(output)
    return ["".join(text for text, _ in line) for line in screen.lines]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("one\r\ntwo", ["one", "two", ""]),
        ("1\r\n2\r\n3\r\n4", ["2", "3", "4"]),
        ("abcdefghijkl", ["abcdefghij", "kl", ""]),
        ("abcdefghij\r\nk", ["abcdefghij", "k", ""]),
        ("\x1b[?7labcdefghijkl\x1b[?7h", ["abcdefghil", "", ""]),
        ("abc\b\bX\x1b[K", ["aX", "", ""]),
        ("one\r\ntwo\x1b[1A\r\x1b[2Kx", ["x", "two", ""]),
        ("one\r\ntwo\x1b[A\x1b[1GX\x1b[J", ["X", "", ""]),
        ("one\r\ntwo\x1b[H\x1b[2Jnew", ["new", "", ""]),
        ("\x1b[2;3Hx\x1b[D\x1b[CY", ["", "  xY", ""]),
        ("\x1b]0;title\x07\x1b[?25lx", ["x", "", ""]),
    ],
)
def test_a_screen_shows_what_a_terminal_shows(output: str, lines: list[str]) -> None:
    assert shown(output) == lines


def test_styles_are_kept_apart() -> None:
    screen = Screen(20, 1)
    screen.feed("a\x1b[2mdim\x1b[22m \x1b[1;32mgreen\x1b[0m b")
    [line] = screen.lines
    assert [(text, style.dim, style.bold, style.colour) for text, style in line] == [
        ("a", False, False, None),
        ("dim", True, False, None),
        (" ", False, False, None),
        ("green", False, True, 2),
        (" b", False, False, None),
    ]


@pytest.mark.parametrize("output", ["\x1b[5q", "\x1b[48m"])
def test_what_is_not_known_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="not known"):
        shown(output)


def frames(drawing: str) -> dict[str, tuple[float, float]]:
    """For each text the seconds from which and up to which it is visible."""
    length = float(re.findall(r"animation:f0 ([\d.]+)s", drawing)[0])
    found = {}
    for group in ElementTree.fromstring(drawing).iter(f"{SVG}g"):
        [keys] = re.findall(rf"@keyframes {group.get('class')}{{(.*?}})}}", drawing)
        points = dict(re.findall(r"([\d.]+)%{visibility:(\w+)}", keys))
        [start] = [float(at) for at, state in points.items() if state == "visible"]
        ends = [
            float(at) for at, state in points.items() if state == "hidden" and float(at) > start
        ]
        text = "".join(group.itertext())
        found[text] = (round(start * length / 100, 2), round((ends or [100])[0] * length / 100, 2))
    return found


def test_a_line_is_visible_while_it_stands_on_the_screen() -> None:
    events = [[0.5, "one"], [0.51, "!"], [1.0, "\r\ntwo"], [60.0, "\x1b[H\x1b[2Jlast"]]
    lines = [{"version": 2, "width": 10, "height": 3}, *([at, "o", text] for at, text in events)]
    drawing = draw("".join(f"{json.dumps(line)}\n" for line in lines))
    assert frames(drawing) == {"one!": (0.5, 4.0), "two": (1.0, 4.0), "last": (4.0, 7.0)}


def test_the_committed_drawing_is_that_of_the_committed_recording() -> None:
    drawing = (DOCS / "cast.svg").read_text(encoding="utf-8")
    recording = (DOCS / "cast.cast").read_text(encoding="utf-8")
    assert drawing == draw(recording), "run python -m book.cast draw docs/cast.cast docs/cast.svg"
    assert len(drawing) < 500_000
    texts = "\n".join(frames(drawing))
    assert "48213 * 977 = 47104101." in texts
    assert "The letter r appears 3 times in strawberry." in texts
