"""`ossia train` in a shell: a record as JSON, an interrupt that saves, one line for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ossia.options import flag
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Settings

PATIENCE = 600.0  # seconds, on a machine that others use as well


def arguments(settings: Settings, out: Path) -> list[str]:
    words = ["--out", str(out)]
    for name, value in asdict(settings).items():
        if isinstance(value, bool):
            words += [flag(name)] * value
        else:
            words += [flag(name), str(value)]
    return words


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ossia", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_every_setting_is_an_option_and_the_record_is_printed(
    tiny: Settings, tmp_path: Path
) -> None:
    settings = replace(tiny, steps=10, recompute=True, schedule="wsd", decay=3, optimizer="muon")
    process = start(*arguments(settings, tmp_path / "out"), "--json")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == json.loads((tmp_path / "out" / "record.json").read_text())
    assert "step 10: loss" in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupt_saves_and_resume_finishes(tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = replace(tiny, steps=100_000, save_every=5, eval_every=100_000)
    process = start(*arguments(settings, out))
    deadline = time.monotonic() + PATIENCE
    while not list((out / "training").glob("states/step-*5")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "ossia train --resume --out" in stderr
    assert "Traceback" not in stderr
    run = Run.resume(out)
    assert run.trainer.progress.step >= 5
    run.close()
    changed = start("--resume", "--steps", "7", "--out", str(out))
    _, stderr = changed.communicate(timeout=PATIENCE)
    assert changed.returncode == 2
    assert "--steps 7: the run began with 100000" in stderr


@pytest.mark.parametrize(
    ("step", "says"),
    [(7, "in step 8; saved is the state after step 5"), (3, "in step 4; nothing is saved")],
)
def test_a_second_interrupt_says_what_is_saved(
    step: int, says: str, tiny: Settings, tmp_path: Path, monkeypatch, capsys
) -> None:
    from ossia.cli.main import main
    from ossia.train.loop import Trainer

    train_step = Trainer.step

    def interrupted(trainer: Trainer):
        if trainer.progress.step == step:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    out = tmp_path / "out"
    # A shell's background jobs, and so their children, ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["train", *arguments(replace(tiny, save_every=5), out)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"stopped at once, {says}; continue with: ossia train --resume --out")
    assert Run.resume(out).trainer.progress.step == (5 if step == 7 else 0)


def test_threads_are_those_asked_for(tiny: Settings, tmp_path: Path, capsys) -> None:
    from ossia.cli.main import main

    out = tmp_path / "out"
    assert main(["train", *arguments(replace(tiny, steps=1, warmup=0), out), "--threads", "2"]) == 0
    assert json.loads((out / "record.json").read_text())["threads"] == 2
    assert "threads:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--threads", "0", "--out", "new"],
            "--threads must be at least 1 and at most 1024, not 0",
        ),
        (["--data", "absent.txt", "--out", "new"], "--data absent.txt: no such file or folder"),
        (["--steps", "0", "--out", "new"], "--steps must be at least 1"),
        (["--steps", "-3", "--out", "new"], "--steps must be at least 1, not -3"),
        (["--resume", "--out", "new"], "new holds no run to resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    from ossia.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
