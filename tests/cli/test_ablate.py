"""`ossia ablate` in a shell: a report, an interrupt that loses nothing, one line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from ossia.cli.main import main
from ossia.errors import OssiaError

TEXT = "".join(f"{i} green bottles hanging on the wall, and if one falls\n" for i in range(300))
PATIENCE = 600.0  # seconds, on a machine that others use as well
SMALL = [
    *("--layers", "1", "--vocab-size", "300", "--length", "16", "--batch-size", "2"),
    *("--rungs", "rope", "--seeds", "1", "--turns", "1"),
]


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


RUN = "from ossia.cli.start import run; run()"
# Ctrl-C at the fifth step; also in a shell that runs the tests in the background, where it would be
# ignored.
INTERRUPTED = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from ossia.cli.progress import Lines
update = Lines.update
def interrupted(self, done, text):
    update(self, done, text)
    if done == 5:
        os.kill(os.getpid(), signal.SIGINT)
Lines.update = interrupted
{RUN}
"""


def start(*words: str, program: str = RUN) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, "ablate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupted_ladder_goes_on_with_its_own_settings(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*SMALL, "--data", text, "--out", str(out), "--steps", "60"]
    process = start(*words, program=INTERRUPTED)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, stderr
    assert f"ossia ablate --out {out}" in stderr
    assert "Traceback" not in stderr
    assert (out / "runs" / "gpt2-0" / "step-00000005").exists()
    process = start("--out", str(out), "--json", "--turns", "1")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    results = json.loads(stdout)
    assert results == json.loads((out / "results.json").read_text())
    assert results["plan"]["steps"] == 60
    assert "--steps 60" in results["command"]
    rope = results["measured"]["rungs"]["rope"]
    assert rope["training"]["median"] > 0
    assert rope["decoding"]["median"] > 0
    assert rope["activation_bytes"] > 2 * 16 * 96 * 4
    page = (out / "report.html").read_text()
    assert f"{rope['decoding']['median']:,.0f}" in page
    assert "One seed was trained" in page


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_runs_at_once_end_with_their_command_and_go_on(text: str, tmp_path: Path) -> None:
    from ossia.ladder.run import Ablation
    from ossia.system.claims import claim

    out = tmp_path / "out"
    process = start(
        *SMALL, "--data", text, "--out", str(out), "--steps", "60", "--jobs", "2", "--threads", "1"
    )
    deadline = time.monotonic() + PATIENCE

    def saved(name: str) -> bool:
        """Whether the run has a state, or has ended, which is as well if it was far ahead."""
        states = out / "runs" / name
        return any(states.glob("step-*")) or states.with_suffix(".json").exists()

    while not (saved("gpt2-0") and saved("rope-0")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=PATIENCE)

    def at_work() -> bool:
        """Whether a process of the command has a run that it could still end."""
        for run in Ablation(out).unfinished:
            try:
                claim(out / "runs" / f"{run.rung.name}-{run.seed}")
            except OssiaError:
                return True
        return False

    while at_work():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = start("--out", str(out), "--json", "--turns", "1", "--jobs", "2")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert not [path for path in (out / "runs").iterdir() if path.is_dir()]
    results = json.loads(stdout)
    alone = Ablation.start(Ablation(out).plan, tmp_path / "alone")
    assert alone.train()
    bits = {name: runs[0].bits_per_byte for name, runs in alone.results().items()}
    assert {rung["name"]: rung["bits_per_byte"]["mean"] for rung in results["rungs"]} == bits


def test_runs_at_once_share_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Four runs of 1,000 steps, one half made before: processes that start for a minute, then one
    run alone for a second, then two at 8 steps a second each, which need 3 minutes and a half.
    """
    from ossia.cli import ablate
    from ossia.cli.progress import Lines
    from ossia.ladder import jobs
    from ossia.ladder.run import Ablation
    from ossia.train.loop import StepReport
    from tests.ladder.conftest import small_plan

    ladder, now = (
        Ablation.start(small_plan(tmp_path, rungs="rope", steps=1000), tmp_path / "out"),
        0.0,
    )
    (tmp_path / "out" / "runs" / "gpt2-0" / "step-00000500").mkdir(parents=True)

    def train(ladder, count, report, *_) -> bool:
        nonlocal now
        now, (one, other, *_) = 60.0, ladder.unfinished
        for tick in range(1, 100):
            now += 0.125
            for run, step in ((one, 500 + tick), (other, tick - 10)):
                if step > 0:
                    made = StepReport(step, 1000, 1.0, None, 1.0, 1e-3, 100.0, None)
                    report(run.rung, run.seed, made)
        return True

    monkeypatch.setattr(jobs, "train", train)
    lines = lambda total, unit, _: nullcontext(Lines(total, unit, lambda: now))  # noqa: E731
    monkeypatch.setattr(ablate, "progress", lines)
    assert ablate._train(ladder, 2)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("501/4,000 steps (13%), gpt2-0 50%, ")
    assert second.startswith("651/4,000 steps (16%), 0:03:31 left, gpt2-0 58%, rope-0 7%, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "absent.txt"], "--data absent.txt: no such file or folder"),
        (["--hidden", "100"], "--hidden must be a multiple of 96, not 100"),
        (["--rungs", "relu"], "'relu' is none of"),
        (["--seeds", "0"], "--seeds must be at least 1 and at most 10, not 0"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--beside", "absent"], "cannot read absent: No such file or directory"),
        (["--length", "250"], "--length must be a multiple of 4, not 250"),
        (["--data", "short.txt", "--vocab-size", "300"], "too few for windows of 256"),
        (
            ["--data", "short.txt", "--vocab-size", "300", "--length", "8"],
            "more than the 32 tokens",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a line\n" * 30)
    assert main(["ablate", "--out", "new", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("new").exists()


def test_a_ladder_keeps_what_it_began_with(text: str, tmp_path: Path, capsys) -> None:
    from ossia.ladder.plan import Plan
    from ossia.ladder.run import Ablation

    out = tmp_path / "out"
    Ablation.start(Plan(data=text, vocab_size=300, length=16, rungs="rope"), out)
    assert main(["ablate", "--out", str(out), "--steps", "7"]) == 2
    assert "--steps 7: the run began with 250" in capsys.readouterr().err
    assert Ablation(out, seeds=5).plan.seeds == 5
    with pytest.raises(OssiaError, match=r"--seeds 1: .* has 5; it may be given more, not fewer"):
        Ablation(out, seeds=1)
    assert Ablation(out).plan.seeds == 5
    assert main(["ablate", "--out", str(tmp_path)]) == 2
    assert "neither a ladder nor an empty folder" in capsys.readouterr().err
