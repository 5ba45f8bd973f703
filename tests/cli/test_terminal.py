"""What a terminal shows of a reply: Markdown drawn once, however it arrives; nothing of a model's
own control codes.
"""

import io
import random
import re

import pytest
from rich.console import Console

from ossia.api import Finished
from ossia.cli import markdown
from ossia.cli.markdown import MarkdownStream
from ossia.cli.terminal_view import TerminalView
from ossia.text import Channel, TextDelta, ToolCallDelta, ToolCallStart

WIDTH, HEIGHT = 40, 8

REPLY = """# Title

A paragraph with *emphasis*, `code` and a line
#1 that looks like a heading and is none, long enough to wrap.

1. first
2. second

   with a paragraph
3. third

```python
def f():
    return "<b>not html</b>"
""" + "".join(f"line_{i} = {i}\n" for i in range(20)) + """```

| a | b |
|---|---|
| 1 | 2 |

A <div> and [a link](https://example.org).
"""  # fmt: skip


class Screen:
    """A terminal of WIDTH x HEIGHT that knows the few codes a reply may hold.

    Lines above the screen have scrolled away for good. Bengali letters are two columns wide here,
    which is not what rich thinks.
    """

    CODES = re.compile(r"\x1b\[(\?25[lh]|\?7[lh]|\d*A|[02]?[KJ]|[\d;]*m)|([^\x1b])")

    def __init__(self):
        self.lines, self.row, self.column, self.wraps = [""], 0, 0, True

    def feed(self, output):
        position = 0
        while position < len(output):
            match = self.CODES.match(output, position)
            assert match, f"unknown code {output[position : position + 12]!r}"
            position = match.end()
            code, char = match.groups()
            if char is not None:
                self.put(char)
            elif code.endswith("A"):
                self.row -= int(code[:-1] or 1)
                assert self.row >= max(0, len(self.lines) - HEIGHT), "moved above the screen"
            elif code == "J":
                self.lines[self.row] = self.lines[self.row][: self.column]
                del self.lines[self.row + 1 :]
            elif code == "2K":
                self.lines[self.row] = ""
            elif code.startswith("?7"):
                self.wraps = code == "?7h"

    def put(self, char):
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            cells = char + "\u200b" if "\u0980" <= char <= "\u09ff" else char
            if self.column + len(cells) > WIDTH:
                if not self.wraps:
                    return
                self.put("\n")
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + cells + line[self.column + len(cells) :]
            self.column += len(cells)

    def text(self):
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


@pytest.fixture
def console():
    return Console(
        file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT, highlight=False,
        color_system=None, legacy_windows=False,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def every_push_is_a_frame(monkeypatch):
    ticks = iter(range(10**9))
    monkeypatch.setattr(markdown.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(markdown, "_FRAME_SECONDS", 0)
    monkeypatch.setattr(markdown, "_REST", 0)


def shown(console):
    screen = Screen()
    screen.feed(console.file.getvalue())
    return screen.text()


def draw(console, pieces):
    stream = MarkdownStream(console)
    for piece in pieces:
        stream.push(piece)
    stream.finish()


@pytest.mark.parametrize("seed", range(4))
def test_markdown_in_pieces_looks_as_it_does_in_one(console, seed):
    draw(console, [REPLY])
    whole = shown(console)
    console.file = io.StringIO()
    rng, pieces, rest = random.Random(seed), [], REPLY
    while rest:
        size = rng.choice([1, 2, 3, 5, 30])
        pieces.append(rest[:size])
        rest = rest[size:]
    draw(console, pieces)
    assert shown(console) == whole


def test_no_line_is_printed_twice_and_none_is_lost(console):
    draw(console, REPLY)
    text = shown(console)
    for once in ("Title", "#1 that looks", "second", "line_19 = 19", "<div>", "example.org"):
        assert text.count(once) == 1


def test_letters_wider_than_rich_thinks_are_printed_once_all_the_same(console):
    words = [f"কলেজ{i:02}" for i in range(40)]
    draw(console, [f"{word} " for word in words])
    text = shown(console).replace("\u200b", "").replace("\n", "")
    assert [word for word in words if text.count(word) != 1] == []


def test_a_block_taller_than_the_screen_shows_its_end_meanwhile(console):
    stream = MarkdownStream(console)
    for i in range(30):
        stream.push(f"- item {i}\n")
    lines = shown(console).splitlines()[-HEIGHT:]
    assert any("item 29" in line for line in lines)
    stream.finish()
    assert [line.split()[-1] for line in shown(console).splitlines()] == list(map(str, range(30)))


def test_a_table_wider_than_the_screen_is_folded_and_not_cut(console):
    draw(console, [f"| name | value |\n|---|---|\n| {'n' * 30} | {'v' * 30} |\n"])
    text = shown(console)
    assert "…" not in text
    assert (text.count("n"), text.count("v")) == (31, 31)  # with those of the header


def test_a_terminal_that_cannot_go_back_is_not_asked_to(console, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    written = io.StringIO()
    dumb = Console(file=written, force_terminal=True, width=WIDTH, height=HEIGHT)
    draw(dumb, REPLY)
    assert "\x1b" not in written.getvalue()
    draw(console, [REPLY])
    assert written.getvalue().split() == shown(console).split()


class TestReplies:
    def show(self, console, *events, hide_reasoning=False):
        view = TerminalView(console, hide_reasoning)
        for event in [*events, Finished("stop", 1, 1)]:
            view.show(event)
        view.close()
        screen = Screen()
        screen.feed(re.sub(r"[⠀-⣿] thinking", "", console.file.getvalue()))
        return [line for line in screen.text().splitlines() if line.strip()]

    def test_reasoning_then_answer(self, console):
        events = [
            TextDelta(Channel.REASONING, "Let me "),
            TextDelta(Channel.REASONING, "think."),
            TextDelta(Channel.FINAL, "The *answer*."),
        ]
        assert self.show(console, *events) == ["Let me think.", "The answer."]

    def test_hidden_reasoning(self, console):
        events = [TextDelta(Channel.REASONING, "Hm."), TextDelta(Channel.FINAL, "Yes.")]
        assert self.show(console, *events, hide_reasoning=True) == ["Yes."]

    def test_tool_calls_have_lines_of_their_own(self, console):
        events = [
            TextDelta(Channel.PREAMBLE, "Looking."),
            ToolCallStart(0, "weather"),
            ToolCallDelta(0, '{"city": '),
            ToolCallDelta(0, '"Oslo"}'),
            ToolCallStart(1, "clock"),
            ToolCallDelta(1, "{}"),
        ]
        assert self.show(console, *events) == [
            "Looking.",
            '→ weather {"city": "Oslo"}',
            "→ clock {}",
        ]
