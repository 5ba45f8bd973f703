"""`ossia chat` on a terminal: a person types, and what is shown fits any width."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
PATIENCE = 600.0  # seconds, on a machine that others use as well
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


class Terminal:
    """A program on a terminal of `width` columns, and what it has shown."""

    def __init__(self, width: int, state: Path, *words: str) -> None:
        import fcntl
        import struct
        import termios

        self.keyboard, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        self.shown, self.position = "", 0
        more = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ossia", *words],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=os.environ | more,
            start_new_session=True,
        )
        os.close(inner)

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def wait_for(self, text: str) -> str:
        """Read on until `text` is shown; what is new up to there, without escape codes."""
        end = time.monotonic() + PATIENCE
        while (found := self._plain().find(text, self.position)) < 0:
            assert time.monotonic() < end, self._plain()[self.position :]
            if select.select([self.keyboard], [], [], 1)[0]:
                self.shown += os.read(self.keyboard, 1 << 16).decode(errors="replace")
        start, self.position = self.position, found + len(text)
        return self._plain()[start : self.position]

    def _plain(self) -> str:
        return ESCAPES.sub("", self.shown).replace("\r", "")

    def ended(self) -> int:
        code = self.process.wait(PATIENCE)
        os.close(self.keyboard)
        return code


@pytest.fixture
def chat(tmp_path: Path) -> Iterator:
    started = []

    def start(width: int, *words: str) -> Terminal:
        started.append(Terminal(width, tmp_path, "chat", *words))
        return started[-1]

    yield start
    for terminal in started:
        terminal.process.kill()
        terminal.process.wait()


@pytest.mark.parametrize("width", [44, 200])
def test_a_person_asks_sets_and_leaves(chat, width: int) -> None:
    terminal = chat(width, "--temp", "0")
    terminal.wait_for("\n>")
    terminal.type("/help\r")
    help_text = terminal.wait_for("Ctrl-D")
    assert all(len(line) <= width for line in help_text.splitlines())
    terminal.type("/set seed 7\r")
    terminal.wait_for("seed: 7")
    terminal.type('"""\r')
    terminal.wait_for("\n.")
    terminal.type('What is 2 + 2?\r"""\r')
    assert "error" not in terminal.wait_for("= 4.")
    terminal.type("/paint\r")
    error = terminal.wait_for("//paint")
    assert "error: unknown command /paint" in error
    terminal.type("exit\r")
    assert terminal.ended() == 0


def test_ctrl_c_drops_what_is_typed_and_ctrl_d_leaves(chat) -> None:
    terminal = chat(80)
    terminal.wait_for("\n>")
    terminal.type("half a line\x03")
    assert "ends the chat" not in terminal.wait_for("\n>")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /exit ends the chat")
    terminal.wait_for("\n>")
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_one_turn_is_drawn_and_the_program_ends(chat) -> None:
    terminal = chat(80, "-q", "What is 2 + 2?")
    terminal.wait_for("= 4.")
    assert terminal.ended() == 0
