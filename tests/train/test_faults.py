"""What happens to a run's folder while it trains: other processes, full disks, removal, kills."""

from __future__ import annotations

import gc
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.errors import OssiaError
from ossia.train.runs import folder
from ossia.train.runs.finetune import FineTuning
from ossia.train.runs.pretrain import Run
from ossia.train.settings import FineTuneSettings, Settings
from tests.system.test_claims import another_process
from tests.training import chats

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX systems")


@pytest.fixture
def short(tiny: Settings) -> Settings:
    return replace(tiny, steps=6, save_every=2, eval_every=6, batch_size=2)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*"))


def test_two_processes_do_not_train_in_one_folder(short: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Run.start(short, out)
    gc.collect()  # the run, and its claim with it
    before = names(out)
    with another_process(out / "training"):
        with pytest.raises(OssiaError, match="another process is at work in"):
            Run.resume(out)
        with pytest.raises(OssiaError, match="unfinished run"):
            Run.start(short, out)
    assert names(out) == before
    Run.resume(out).train()


def test_nor_do_two_start_in_one(
    short: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first reads its data."""
    out, prepare = tmp_path / "out", Run.prepare

    def slowly(settings: Settings, device: torch.device) -> folder.Prepared:
        monkeypatch.undo()
        prepared = prepare(settings, device)
        Run.start(replace(settings, seed=7), out)
        return prepared

    monkeypatch.setattr(Run, "prepare", slowly)
    with pytest.raises(OssiaError, match=f"{out} exists and is not an empty folder"):
        Run.start(short, out)
    assert Run.resume(out).settings.seed == 7
    assert [*tmp_path.glob(".out*")] == []


def remove(out: Path) -> None:
    shutil.rmtree(out)


def move(out: Path) -> None:
    out.rename(out.with_name("moved"))


def empty(out: Path) -> None:
    shutil.rmtree(out / "training")


@pytest.mark.parametrize("fault", [remove, move, empty])
def test_a_folder_that_goes_away_ends_the_run(
    fault: Callable[[Path], None], short: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = Run.start(short, out)

    def report(step) -> None:
        if step.step == 3:
            fault(out)

    with pytest.raises(OssiaError, match="was removed or replaced while this process wrote"):
        run.train(report)
    assert run.trainer.progress.step == 3
    assert not (out / "training").exists()
    assert (tmp_path / "moved").exists() == (fault is move)


def test_a_folder_replaced_by_another_run_is_not_touched(short: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = Run.start(short, out)
    run.train()
    remove(out)
    other = Run.start(replace(short, seed=7), out)
    before = names(out)
    for act in (run.export, lambda: run.finish({})):
        with pytest.raises(OssiaError, match="was removed or replaced"):
            act()
    assert names(out) == before
    other.train()


def test_a_folder_removed_before_the_export_gives_no_half_checkpoint(
    settings: FineTuneSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = FineTuning.start(replace(settings, steps=1, warmup=0), out)
    run.train()
    remove(out)
    with pytest.raises(OssiaError, match="was removed or replaced"):
        run.export()
    assert not out.exists()


@pytest.fixture
def fills_up() -> Iterator[Callable[[], None]]:
    """Makes every write of a large file fail, as on a full disk, until it is called again."""
    before, small = resource.getrlimit(resource.RLIMIT_FSIZE), 20_000

    def toggle() -> None:
        full = resource.getrlimit(resource.RLIMIT_FSIZE)[0] == small
        resource.setrlimit(resource.RLIMIT_FSIZE, before if full else (small, before[1]))

    yield toggle
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(
    short: Settings, tmp_path: Path, fills_up: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    run = Run.start(short, out)

    def report(step) -> None:
        if step.step == 3:
            fills_up()

    with pytest.raises(OssiaError) as refused:
        run.train(report)
    states = out / "training" / "states"
    assert str(refused.value) == f"{states / 'step-00000004'}: cannot save the run: File too large"
    fills_up()
    assert [path.name for path in states.iterdir()] == ["step-00000002"]
    run = Run.resume(out)
    assert run.trainer.progress.step == 2
    run.train()
    before = names(out)
    fills_up()
    with pytest.raises(OssiaError, match=f"^cannot save to {out}: File too large$"):
        run.export()
    fills_up()
    assert names(out) == before
    assert [*tmp_path.glob(".out*")] == []
    assert run.export()["steps"] == 6


def test_a_full_disk_while_a_run_starts_leaves_nothing(
    settings: FineTuneSettings, tmp_path: Path, fills_up: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    long = replace(settings, steps=1, warmup=0, data=str(chats(tmp_path / "long.jsonl", 3000)))
    fills_up()
    with pytest.raises(OssiaError, match=f"^cannot write to {out}: File too large$"):
        FineTuning.start(long, out)
    fills_up()
    assert [*tmp_path.glob("*out*")] == []


def test_a_run_killed_at_its_last_write_is_finished_and_cleared_away(
    short: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    run = Run.start(short, out)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            run.finish({"steps": 6})
    assert (out / "training" / "run.json").exists()
    del run
    for _ in range(2):
        with pytest.raises(OssiaError, match="holds a finished run; there is nothing to resume"):
            Run.resume(out)
        assert not (out / "training").exists()


def test_memory_that_runs_out_on_the_cpu_is_one_line(
    short: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which torch raises as a plain RuntimeError there."""
    run = Run.start(short, tmp_path / "out")
    real = run.trainer._update

    def update(step: int, rate: float) -> object:
        return real(step, rate) if step < 3 else torch.empty(1 << 60)

    monkeypatch.setattr(run.trainer, "_update", update)
    says = "the memory of cpu ran out in step 4 .*the state after step 2 is saved; .*--batch-size"
    with pytest.raises(OssiaError, match=says):
        run.train()
