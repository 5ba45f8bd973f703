"""Records a session of a shell in a terminal, and draws a recording as an animated SVG.

    make cast       # the session below, in half a minute, and its drawing
    python -m book.cast draw docs/cast.cast docs/cast.svg

A recording is a file of asciinema's (https://docs.asciinema.org/manual/asciicast/v2/).
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

from book.terminal import Screen, Style

_COLUMNS, _ROWS = 82, 28
_PROMPT = "$ "
_SESSION = (
    'ossia chat "What is 48213 * 977?"',
    'ossia chat --show-reasoning "How many r in strawberry?"',
    'ossia xray "The quick brown fox jumps over the lazy dog."',
    "clear",
    "ossia inspect gpt-oss-20b",
)
_PER_KEY = 0.045  # seconds
_READING = 3.0  # seconds that the end of a command stays before the next is typed
_LONGEST_WAIT = 3.0  # of a recording, as drawn
_TOGETHER = 0.04  # seconds within which changes are drawn as one

_CELL, _LINE, _SIZE = 8.0, 18.0, 13.0  # width of a character, height of a line, size of the font
_MARGIN = 14.0
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2025; --dim: #6a7078; --paper: #fbfbf9; --edge: #c9c9c3;
  --c1: #b3261e; --c2: #2e7d32; --c3: #8a6d00; --c4: #0b5cad; --c5: #8a2f86; --c6: #00706f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e8ea; --dim: #969ca5; --paper: #16181c;
  --edge: #4a4e55; --c1: #f28b82; --c2: #81c995; --c3: #dcc65a; --c4: #74b3f5; --c5: #e08fdc;
  --c6: #5fd0cc; } }
rect { fill: var(--paper); stroke: var(--edge); }
text { fill: var(--ink); white-space: pre;
  font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.dim { fill: var(--dim); } .bold { font-weight: 700; }
.c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); } .c4 { fill: var(--c4); }
.c5 { fill: var(--c5); } .c6 { fill: var(--c6); }
"""

Event = tuple[float, str]  # seconds since the beginning, and output


def record() -> str:
    """The session, typed into a shell, as a recording."""
    folder = tempfile.mkdtemp()
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        environment = os.environ | {"TERM": "xterm-256color", "PS1": _PROMPT}
        os.execvpe("bash", ["bash", "--norc", "--noprofile"], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", _ROWS, _COLUMNS, 0, 0))
    start, events = time.monotonic(), []

    def listen(seconds: float, until: str = "") -> None:
        """Note what is written for so long, or until it ends so."""
        end, heard = time.monotonic() + seconds, ""
        while (left := end - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                heard += (data := os.read(terminal, 65536).decode())
                events.append((round(time.monotonic() - start, 3), data))
                if until and heard.endswith(until):
                    return

    listen(5, _PROMPT)
    listen(0.5)
    for command in _SESSION:
        for key in command:
            os.write(terminal, key.encode())
            listen(_PER_KEY)
        listen(0.3)
        os.write(terminal, b"\n")
        listen(60, _PROMPT)
        listen(0.3 if command == "clear" else _READING)
    os.write(terminal, b"\x04")
    os.waitpid(process, 0)
    shutil.rmtree(folder)
    header = {"version": 2, "width": _COLUMNS, "height": _ROWS, "title": "ossia"}
    return "".join(f"{json.dumps(line)}\n" for line in [header, *([t, "o", d] for t, d in events)])


def draw(recording: str) -> str:
    """A recording as an SVG that plays it without end; where nothing moves, its last screen."""
    header, *lines = map(json.loads, recording.splitlines())
    screen = Screen(header["width"], header["height"])
    shown: dict[int, tuple[tuple, float]] = {}  # a row's content, and since when
    rows: list[tuple[int, tuple, float, float | None]] = []  # None: to the end
    now = 0.0
    for now, output in _steps((at, data) for at, kind, data in lines if kind == "o"):
        screen.feed(output)
        for row, content in enumerate(screen.lines):
            before, since = shown.get(row, ((), 0.0))
            if content != before:
                rows += [(row, before, since, now)] if before else []
                shown[row] = content, now
    length = now + _READING
    rows += [(row, content, since, None) for row, (content, since) in shown.items() if content]
    return _svg(screen, rows, length)


def _steps(events: Iterator[Event]) -> Iterator[Event]:
    """The output that is drawn together, with its time once long waits are cut."""
    now = last = begin = 0.0
    together = ""
    for at, output in events:
        now, last = now + min(at - last, _LONGEST_WAIT), at
        if together and now - begin >= _TOGETHER:
            yield begin, together
            together = ""
        if not together:
            begin = now
        together += output
    yield begin, together


def _svg(screen: Screen, rows: list[tuple[int, tuple, float, float | None]], length: float) -> str:
    width = screen.columns * _CELL + 2 * _MARGIN
    height = screen.rows * _LINE + 2 * _MARGIN
    frames: dict[tuple[float, float | None], str] = {}
    texts = []
    for row, content, start, end in rows:
        name = frames.setdefault((start, end), f"f{len(frames)}")
        y = _MARGIN + row * _LINE + _SIZE
        texts.append(f'<g class="{name}">{"".join(_runs(content, y))}</g>')
    moves = []
    for (start, end), name in frames.items():
        opening = "" if start == 0 else "0%{visibility:hidden}"
        closing = "" if end is None else f"{_percent(end, length)}{{visibility:hidden}}"
        shown = f"{_percent(start, length)}{{visibility:visible}}"
        moves.append(f"@keyframes {name}{{{opening}{shown}{closing}}}")
        still = "" if end is None else "visibility:hidden;"
        moves.append(f".{name}{{{still}animation:{name} {length:.2f}s step-end infinite}}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="t"><title id="t">'
        f"ossia in a terminal: the model inside the package answers, and a model is described"
        f"</title><style>{_STYLE}{''.join(moves)}\n"
        "@media (prefers-reduced-motion) { g { animation: none !important; } }</style>"
        f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>'
        f"{''.join(texts)}</svg>\n"
    )


def _percent(at: float, length: float) -> str:
    return f"{100 * at / length:.3f}%"


def _runs(content: tuple[tuple[str, Style], ...], y: float) -> Iterator[str]:
    column = 0
    for text, style in content:
        names = ["bold"] * style.bold + ["dim"] * style.dim
        names += [] if style.colour in (None, 0, 7) else [f"c{style.colour}"]
        kind = f' class="{" ".join(names)}"' if names else ""
        begin = len(text) - len(text.lstrip(" "))
        shown = text.strip(" ")
        if shown:
            x = _MARGIN + (column + begin) * _CELL
            yield (
                f'<text{kind} x="{x:g}" y="{y:g}" textLength="{len(shown) * _CELL:g}">'
                f"{escape(shown)}</text>"
            )
        column += len(text)


def main() -> None:
    match sys.argv[1:]:
        case ["record", target]:
            Path(target).write_text(record(), encoding="utf-8")
        case ["draw", source, target]:
            drawn = draw(Path(source).read_text(encoding="utf-8"))
            Path(target).write_text(drawn, encoding="utf-8")
        case _:
            sys.exit("usage: python -m book.cast record FILE | draw FILE FILE")


if __name__ == "__main__":
    main()
