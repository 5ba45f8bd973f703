"""Progress: a bar on a terminal, and elsewhere lines, seldom enough for a log."""

import io
import re
import sys

from ossia.cli.progress import Lines, progress


def test_a_line_every_ten_seconds_says_how_far_it_is_and_what_is_left(capsys):
    now = [0.0]
    lines = Lines(1200, "steps", clock=lambda: now[0])
    for step in range(201, 301):
        now[0] += 0.25
        lines.update(step, f"loss {step}.0")
    assert capsys.readouterr().err.splitlines() == [
        "240/1,200 steps (20%), 0:04:00 left, loss 240.0",
        "280/1,200 steps (23%), 0:03:50 left, loss 280.0",
    ]


def test_a_long_step_has_a_line_and_others_are_said_at_once(capsys):
    now = [0.0]
    lines = Lines(3, "steps", clock=lambda: now[0])
    now[0] = 4000.0
    lines.update(1, "")
    lines.say("held out")
    assert capsys.readouterr().err == "1/3 steps (33%)\nheld out\n"
    now[0] += 4000.0
    lines.update(2, "")
    assert capsys.readouterr().err == "2/3 steps (67%), 1:06:40 left\n"


def test_the_time_before_the_first_step_and_at_another_pace_does_not_count(capsys):
    now = [0.0]
    lines = Lines(1000, "steps", clock=lambda: now[0])
    now[0] = 300.0  # processes start, kernels are compiled
    lines.update(1, "")
    now[0] += 10.0
    lines.update(2, "")
    lines.change_pace()
    for step in range(3, 103):
        now[0] += 0.1
        lines.update(step, "")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "1/1,000 steps (0%)",
        "2/1,000 steps (0%), 2:46:20 left",
        "102/1,000 steps (10%), 0:01:30 left",
    ]


def test_a_long_text_leaves_its_room_to_the_count(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with progress(1600, "steps") as bar:
        bar.update(953, "")
        bar.change_pace()
        bar.update(954, "gpt2-0 74%, " * 9)
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(r"954/1600 steps \S+ gpt2-0 74%, .*\.\.\.$", line, re.MULTILINE)
