"""Several runs of a ladder at once: the same numbers as one after another, whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.errors import OssiaError
from ossia.ladder import jobs
from ossia.ladder.jobs import Waiting
from ossia.ladder.plan import Plan
from ossia.ladder.run import Ablation, Planned
from tests.ladder.test_run import files

GIB = 1 << 30

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


def processes() -> set[int]:
    """The processes that this one has started and that live."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, dict]]:
    """A plan, and its results with one run after another."""
    from tests.ladder.conftest import small_plan

    folder = tmp_path_factory.mktemp("alone")
    plan = small_plan(folder, rungs="rope", steps=12)
    ladder = Ablation.start(plan, folder / "out")
    assert ladder.train()
    return plan, files(folder / "out")


def test_two_at_once_compute_what_each_computes_alone(
    alone: tuple[Plan, dict[str, dict]], tmp_path: Path
) -> None:
    plan, expected = alone
    out, seen = tmp_path / "out", []

    def stopped() -> bool:
        return len(seen) >= 3

    ladder = Ablation.start(plan, out)
    before = processes()
    heard = lambda rung, seed, step: seen.append((rung.name, seed, step.step))  # noqa: E731
    assert not jobs.train(ladder, 2, heard, stopped=stopped)
    assert processes() <= before  # one of another test may end meanwhile
    assert ladder.unfinished
    assert jobs.train(Ablation(out), 2, heard)
    assert files(out) == expected
    assert sorted(seen) == sorted(set(seen))  # no step was made twice
    assert [path for path in (out / "runs").iterdir() if path.is_dir()] == []


def test_a_killed_process_takes_no_other_run_with_it(
    alone: tuple[Plan, dict[str, dict]], tmp_path: Path
) -> None:
    plan, expected = alone
    out, lines = tmp_path / "out", []
    ladder = Ablation.start(plan, out)
    before = processes()

    def kill_one(*_: object) -> None:
        if not lines and (new := processes() - before):
            os.kill(new.pop(), signal.SIGKILL)
            lines.append(None)

    def lost(run: Planned, line: str) -> None:
        lines.append(line)

    assert jobs.train(ladder, 2, kill_one, lost)
    _, line = lines
    assert "was killed, perhaps because the memory ran out; it continues later" in line
    assert "one run is at work at once" in line
    assert files(out) == expected


def test_a_failing_run_leaves_the_others_alone(plan: Plan, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", []
    ladder = Ablation.start(replace(plan, steps=2), out)
    (out / "runs" / "rope-0").write_text("in the way of its folder of states")
    with pytest.raises(OssiaError, match=r"1 of 4 runs failed \(RoPE, seed 0\).*tries it again"):
        jobs.train(ladder, 2, lost=lambda run, line: lines.append((run.title, line)))
    ((title, line),) = lines
    assert title == "RoPE, seed 0"
    assert line.startswith("RoPE, seed 0 failed: cannot write to")
    assert "\n" not in line
    assert [run.title for run in ladder.unfinished] == ["RoPE, seed 0"]
    (out / "runs" / "rope-0").unlink()
    assert jobs.train(ladder, 2)


@pytest.mark.parametrize("kind", ["torch.OutOfMemoryError", "RuntimeError"])
def test_memory_that_runs_out_is_one_process_less(
    kind: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run needs, it is only once more than the rest has left."""
    program = f"""
import os, torch
from ossia.errors import OssiaError
from ossia.ladder import jobs
from ossia.ladder.run import Ablation
whole = Ablation.train_one
def train_one(self, run, *rest):
    full = self.out / "full"
    if run.rung.name == "rope" and not full.exists():
        full.touch()
        raise OssiaError("the memory ran out") from {kind}("CUBLAS_STATUS_ALLOC_FAILED")
    return whole(self, run, *rest)
Ablation.train_one = train_one
jobs.work()
"""
    monkeypatch.setattr(jobs, "_PROGRAM", program)
    ladder, lines = Ablation.start(replace(plan, steps=2, seeds=1), tmp_path / "out"), []
    assert jobs.train(ladder, 2, lost=lambda _, line: lines.append(line))
    (line,) = lines
    assert line.startswith("RoPE, seed 0: the memory ran out; it continues later, and one run is")
    assert not ladder.unfinished


def test_a_process_that_breaks_says_how(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PROGRAM", "raise SystemError('the kernel is odd')")
    ladder, lines = Ablation.start(replace(plan, steps=2, seeds=1), tmp_path / "out"), []
    with pytest.raises(OssiaError, match="2 of 2 runs failed"):
        jobs.train(ladder, 2, lost=lambda _, line: lines.append(line))
    assert len(lines) == 2
    for line in lines:
        assert "ended with exit code 1 (SystemError: the kernel is odd)" in line


def test_kernels_are_compiled_by_one_run_of_a_rung(plan: Plan, tmp_path: Path) -> None:
    runs = Ablation.start(plan, tmp_path / "out").runs
    names = lambda run: run and (run.rung.name, run.seed)  # noqa: E731
    waiting = Waiting(runs, compiles=True)
    foot, rope = waiting.take(), waiting.take()
    assert foot is not None
    assert rope is not None
    assert [names(foot), names(rope)] == [("gpt2", 0), ("rope", 0)]
    assert waiting.take() is None
    waiting.made_a_step(rope)
    assert names(waiting.take()) == ("rope", 1)
    assert waiting.take() is None
    waiting.ended(foot)  # before its first step
    waiting.put_back(foot)
    assert names(waiting.take()) == ("gpt2", 0)
    assert waiting.take() is None
    waiting.made_a_step(foot)
    assert names(waiting.take()) == ("gpt2", 1)
    waiting = Waiting(runs, compiles=False)
    assert [names(waiting.take()) for _ in runs] == [names(run) for run in runs]


@pytest.mark.parametrize(
    ("free", "cores", "most"), [(100 * GIB, 16, 4), (100 * GIB, 2, 2), (20 * GIB, 16, 2), (1, 2, 1)]
)
def test_as_many_runs_as_the_card_has_room_for(
    free: int, cores: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.ladder.conftest import small_plan

    out = tmp_path / "out"
    ladder = Ablation.start(small_plan(tmp_path, rungs="rope", steps=1), out)
    assert jobs.fitting(ladder) == 1  # on a CPU
    ladder.plan = Plan.at("gpu", {"rungs": "rope"})
    ladder.rungs = [(rung, ladder.plan.foot()) for rung, _ in ladder.rungs]
    ladder.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 141 * GIB))
    monkeypatch.setattr(jobs, "usable", lambda: cores)
    assert jobs.fitting(ladder) == most
