"""Two processes compute what one does: losses to float32 rounding, and each other's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from ossia.options import flag
from ossia.train.runs.finetune import FineTuning
from ossia.train.runs.pretrain import Run
from ossia.train.settings import FineTuneSettings, Settings
from tests.torchrun import run_together

STEPS = 4  # and as many again where the other side goes on

# Each scenario is started by two processes, which stop after STEPS, or resumed by them.
PROGRAM = """
import json, sys, torch
from pathlib import Path
from ossia.train import parallel
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Settings
torch.set_num_threads(1)
parallel.join()
steps, seen = int(sys.argv[2]), {}
for folder, settings in json.loads(sys.argv[1]).items():
    out = Path(folder)
    if (out / "training" / "run.json").exists():
        run = Run.resume(out)
    else:
        run = Run.start(Settings(**settings), out)
    end = run.trainer.progress.step + steps
    seen[folder] = reports = []
    run.train(lambda step: reports.append([step.loss, step.gradient_norm, step.balance or 0.0]),
              lambda: run.trainer.progress.step == end)
if parallel.rank() == 0:
    print(json.dumps(seen))
parallel.leave()
"""

SCENARIOS = {
    "sharded": {"accumulate": 2, "balance": 0.0, "z_loss": 1e-3, "recompute": True},
    "muon": {"optimizer": "muon", "schedule": "wsd"},
    "experts": {"expert_parallel": True, "mxfp4_steps": 28},
}


def settings_of(tiny: Settings, name: str) -> Settings:
    """Without dropout, whose randomness is each process's own."""
    config = Path(tiny.config)
    config.write_text(
        config.read_text().replace('"attention_dropout": 0.1', '"attention_dropout": 0')
    )
    return replace(tiny, **SCENARIOS[name])


def run_by_two(folders: dict[str, Settings]) -> dict[str, list[list[float]]]:
    """What each step of each scenario reported."""
    scenarios = json.dumps({out: asdict(settings) for out, settings in folders.items()})
    done = run_together(["-c", PROGRAM, scenarios, str(STEPS)])
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    return json.loads(done[0].stdout)


def run_by_one(out: Path, settings: Settings, steps: int) -> list[list[float]]:
    run = Run.resume(out) if out.exists() else Run.start(settings, out)
    end, seen = run.trainer.progress.step + steps, []
    run.train(
        lambda step: seen.append([step.loss, step.gradient_norm, step.balance or 0.0]),
        lambda: run.trainer.progress.step == end,
    )
    run.close()
    return seen


def close(name: str, one: list[list[float]], other: list[list[float]]) -> None:
    # Torch's Muon orthogonalises in bfloat16, which makes a last bit of float32 larger.
    tolerance = 5e-3 if name == "muon" else 2e-4
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=tolerance)


def test_losses_are_those_of_one_process_and_checkpoints_go_both_ways(
    tiny: Settings, tmp_path: Path
) -> None:
    names = list(SCENARIOS)
    settings = {name: settings_of(tiny, name) for name in names}
    expected = {name: run_by_one(tmp_path / f"{name}-1", settings[name], STEPS) for name in names}
    found = run_by_two({str(tmp_path / f"{name}-2"): settings[name] for name in names})
    for name in names:
        close(name, found[str(tmp_path / f"{name}-2")], expected[name])
    # What two saved one continues, and what one saved two continue.
    further = run_by_two({str(tmp_path / f"{name}-1"): settings[name] for name in names})
    for name in names:
        alone = run_by_one(tmp_path / f"{name}-2", settings[name], STEPS)
        close(name, further[str(tmp_path / f"{name}-1")], alone)


def test_torchrun_trains_and_exports_one_checkpoint(tiny: Settings, tmp_path: Path) -> None:
    settings = replace(settings_of(tiny, "experts"), steps=8, eval_every=8, mxfp4_steps=4)
    words = ["--out", str(tmp_path / "two"), "--expert-parallel", "--json"]
    for name, value in asdict(settings).items():
        if not isinstance(value, bool):
            words += [flag(name), str(value)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "ossia", "train", *words],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)  # printed once
    assert record["processes"] == 2
    one = Run.start(settings, tmp_path / "one")
    one.train()
    alone = one.export()
    assert record["parameters"] == alone["parameters"]
    assert record["curve"][-1]["loss"] == pytest.approx(alone["curve"][-1]["loss"], rel=1e-3)
    assert record["held_out_bits_per_byte"] == pytest.approx(
        alone["held_out_bits_per_byte"], rel=1e-2
    )
    assert not (tmp_path / "two" / "training").exists()


def test_what_is_wrong_with_the_data_is_said_once(tmp_path: Path) -> None:
    words = ["-m", "ossia", "train", "--data", "absent.txt", "--out", "new"]
    done = run_together(words, folder=tmp_path)
    said = [process.stderr for process in done]
    assert [process.returncode for process in done] == [2, 2]
    assert said[0].startswith("error: --data absent.txt: no such file or folder")
    assert [lines.count("\n") for lines in said] == [1, 0]
    assert not list(tmp_path.iterdir())


def test_two_processes_fine_tune_as_one_does(settings: FineTuneSettings, tmp_path: Path) -> None:
    """With frozen routers, and replies that do not divide evenly between the rows of the two."""
    settings = replace(settings, steps=3, eval_every=3, mxfp4_steps=1)
    words = [flag(name) + f"={value}" for name, value in asdict(settings).items() if value]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "ossia", "finetune", *words, "--out", str(tmp_path / "two"), "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    one = FineTuning.start(settings, tmp_path / "one")
    one.train()
    alone = one.export()
    assert record["processes"] == 2
    assert record["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-3)
    assert record["curve"][-1]["loss"] == pytest.approx(alone["curve"][-1]["loss"], rel=1e-4)


def test_what_does_not_divide_is_refused(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ossia.errors import OssiaError
    from ossia.train import parallel

    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(OssiaError, match="3 processes times --accumulate 1 do not divide"):
        Run.start(tiny, tmp_path / "out")
    torch.testing.assert_close(parallel.mean(torch.tensor(1.0)), torch.tensor(1.0))
