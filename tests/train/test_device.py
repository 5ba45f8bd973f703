"""The choice of the device that a run trains on, with a simulated torch.cuda, and what it means for
memory, records and resuming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ossia.errors import OssiaError
from ossia.train import device, loop, parallel, utilization
from ossia.train.budget import Estimate
from ossia.train.runs.folder import last_device
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Precision, Settings
from tests.training import chats


class Cards:
    """torch.cuda with some cards, or a reason why there is none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.capability, self.problem = 1, (9, 0), ""
        self.chosen: torch.device | None = None
        empty = torch.empty

        def allocate(*shape, **options):
            if torch.device(options.get("device", "cpu")).type != "cuda":
                return empty(*shape, **options)
            if self.problem:
                raise RuntimeError(self.problem)
            return empty(*shape)

        def choose(chosen: torch.device) -> None:
            self.chosen = chosen

        patch.setattr(torch, "empty", allocate)
        patch.setattr(torch.cuda, "is_available", lambda: self.count > 0)
        patch.setattr(torch.cuda, "device_count", lambda: self.count)
        patch.setattr(torch.cuda, "get_device_capability", lambda _: self.capability)
        patch.setattr(torch.cuda, "get_device_name", lambda _=None: "A CARD")
        patch.setattr(torch.cuda, "set_device", choose)
        patch.setattr(dist, "is_nccl_available", lambda: True)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    pytest.importorskip("triton", reason="it is for Linux")
    return Cards(monkeypatch)


def test_auto_takes_a_card_that_can_be_used(cards: Cards) -> None:
    assert device.choose("auto") == (torch.device("cuda:0"), None)
    assert cards.chosen == torch.device("cuda:0")
    cards.count = 2
    assert device.choose("cuda:1") == (torch.device("cuda:1"), None)
    assert device.choose("cpu") == (device.CPU, None)
    assert device.describe(torch.device("cuda:0")) == {"device": "cuda", "card": "A CARD"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"capability": (7, 5)}, "the A CARD has compute capability 7.5, and the kernels need 8.0"),
        ({"problem": "CUDA out of memory.\nmore"}, "others have taken all of its memory"),
        ({"problem": "CUDA error: a new one.\nmore"}, "CUDA error: a new one"),
        (
            {"problem": "The NVIDIA driver on your system is too old (found version 11040)."},
            "its driver is too old: update the driver, or install a PyTorch for an older CUDA "
            "(https://pytorch.org/get-started)",
        ),
    ],
)
def test_a_card_that_cannot_be_used_is_left_or_refused_in_one_line(
    cards: Cards, change: dict, reason: str
) -> None:
    vars(cards).update(change)
    assert device.choose("auto") == (device.CPU, f"training on the CPU: {reason}")
    with pytest.raises(OssiaError) as refused:
        device.choose("cuda")
    expected = f"--device cuda cannot be used: {reason}; --device cpu trains without it"
    assert str(refused.value) == expected


def test_without_a_card_auto_is_the_cpu_in_silence(cards: Cards) -> None:
    cards.count, cards.problem = 0, "No CUDA GPUs are available"
    assert device.choose("auto") == (device.CPU, None)
    with pytest.raises(OssiaError, match="cannot be used: No CUDA GPUs are available; --device"):
        device.choose("cuda")
    cards.count = 2
    with pytest.raises(OssiaError, match="cuda:2 cannot be used: GPUs are numbered from 0 to 1"):
        device.choose("cuda:2")


@pytest.mark.parametrize("name", ["mps", "cuda:", "cuda:x", "gpu", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(OssiaError, match=f"--device {name}: training runs on cpu, cuda"):
        device.choose(name)


def test_a_missing_triton_is_named(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ossia.ops.triton", None)
    monkeypatch.delattr("ossia.ops.triton", raising=False)
    with pytest.raises(OssiaError, match=r"triton cannot be imported .*pip install 'ossia\[gpu\]'"):
        device.choose("cuda")


@pytest.mark.parametrize("lacking", ["triton", "too old", "no card"])
def test_lora_on_a_card_that_cannot_be_used_is_one_line(
    lacking: str,
    cards: Cards,
    monkeypatch: pytest.MonkeyPatch,
    ossia_command,
    base: Path,
    tmp_path: Path,
) -> None:
    if lacking == "triton":
        monkeypatch.setitem(__import__("sys").modules, "ossia.ops.triton", None)
        monkeypatch.delattr("ossia.ops.triton", raising=False)
    elif lacking == "too old":
        cards.capability = (7, 5)
    else:
        cards.count, cards.problem = 0, "No CUDA GPUs are available"
    data, out = chats(tmp_path / "chats.jsonl", 4), tmp_path / "out"
    words = ("--model", base, "--data", data, "--lora", "--device", "cuda", "--out", out)
    done = ossia_command("finetune", *words)
    reason = {"triton": "triton cannot be imported", "too old": "the kernels need 8.0"}
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "--device cuda cannot be used" in done.err
    assert reason.get(lacking, cards.problem) in done.err
    assert not out.exists()


def test_each_process_of_torchrun_has_a_card(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.choose("auto")[0] == device.CPU
    with pytest.raises(OssiaError, match="2 processes need a GPU each, and there are 1"):
        device.choose("cuda")
    cards.count = 2
    assert device.choose("auto")[0] == torch.device("cuda:1")
    with pytest.raises(OssiaError, match="--device cuda:0 is one GPU, and torchrun started 2"):
        device.choose("cuda:0")
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", asked.append)
    parallel.join(torch.device("cuda:1"))
    parallel.join(device.CPU)
    assert asked == ["cpu:gloo,cuda:nccl", "gloo"]


def test_memory_of_a_card_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 10**9, 10**10))
    card = torch.device("cuda:0")
    Estimate(10**9, 10**9, 10**9, 10**12).refuse_more_than_there_is(card)
    expected = r"3\.0 GB are free on cuda:0, at least 0\.2 GB too little: use --recompute"
    with pytest.raises(OssiaError, match=expected):
        Estimate(10**9, 10**9, 12 * 10**8, 0).refuse_more_than_there_is(card)


def test_a_run_that_finds_no_memory_left_says_what_is_saved(tiny: Settings, tmp_path: Path) -> None:
    run = Run.start(replace(tiny, save_every=3), tmp_path / "out")
    step = run.trainer.step

    def full():
        if run.trainer.progress.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return step()

    run.trainer.step = full  # type: ignore[method-assign]
    with pytest.raises(OssiaError, match=r"ran out in step 5 .*; the state after step 3 is saved"):
        run.train()


def full(*_: object, **__: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


def test_the_precision_that_fits_is_kept_and_nothing_is_left_behind(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.start(replace(tiny, dtype="auto"), tmp_path / "out")
    precisions: list[str] = []
    autocast, backward = loop.autocast, torch.Tensor.backward

    @contextmanager
    def noted(dtype: str, on: torch.device) -> Iterator[None]:
        precisions.append(dtype)
        with autocast(dtype, on):
            yield

    def half(loss: torch.Tensor) -> None:
        backward(loss)
        if precisions[-1] == "float32":
            full()

    monkeypatch.setattr(loop, "autocast", noted)
    monkeypatch.setattr(torch.Tensor, "backward", half)
    run.choose_precision()
    assert run.settings.dtype == "bfloat16"
    assert any("(float32 runs out of memory, " in note for note in run.notes)
    assert all(parameter.grad is None for parameter in run.decoder.parameters())
    with pytest.raises(torch.OutOfMemoryError):
        run.trainer.time_pass(64, Precision.FLOAT32)
    assert all(parameter.grad is None for parameter in run.decoder.parameters())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_timed_pass_that_finds_no_memory_is_one_line(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    run = Run.start(replace(tiny, dtype="auto"), tmp_path / "out")
    monkeypatch.setattr(torch.Tensor, "backward", full)
    monkeypatch.setattr(parallel, "size", lambda: processes)
    when = "in float32 and in bfloat16" if processes == 1 else "in a timed pass"
    with pytest.raises(OssiaError, match=rf"of cpu ran out {when} .*; no state is saved; use --"):
        run.choose_precision()


def test_layers_that_find_no_memory_when_compiled_say_so_in_one_line(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.start(tiny, tmp_path / "out")
    monkeypatch.setattr("ossia.model.decoder._compiled", lambda function: function)
    monkeypatch.setattr(torch.Tensor, "backward", full)
    with pytest.raises(OssiaError, match=r"ran out while the layers were compiled .*; use --"):
        run.compile()


def test_a_run_goes_on_with_the_card_that_it_had(
    cards: Cards, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.count = 2
    out = tmp_path / "out"
    run = Run.start(tiny, out)
    run.device = torch.device("cuda:1")
    run._note_session()
    assert last_device(out) == "cuda:1"
    assert device.choose(last_device(out))[0] == run.device
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        assert last_device(out) == "cuda"
    cards.count = 1
    assert last_device(out) == "cuda"
    cards.count = 2
    monkeypatch.setattr(parallel, "size", lambda: 2)
    run._note_session()
    assert last_device(out) == "cuda"


def test_a_run_goes_on_where_it_was(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run = Run.start(tiny, out)
    assert last_device(out) == "auto"
    run.train(stopped=lambda: run.trainer.progress.step == 1)
    run.close()
    assert last_device(out) == "cpu"
    file = out / "training" / "sessions.json"
    kept = json.loads(file.read_text())
    assert kept["sessions"][0]["device"] == "cpu"
    kept["sessions"][0]["device"] = "cuda"
    file.write_text(json.dumps(kept))
    assert last_device(out) == "cuda"


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a clock by which the products take 3, 2 and 4 seconds."""
    monkeypatch.setitem(utilization._SIZES, "cpu", 16)
    readings = iter([0.0, 3.0, 5.0, 7.0, 8.0, 12.0])
    clock = SimpleNamespace(perf_counter=lambda: next(readings))  # of this module alone
    monkeypatch.setattr(utilization, "time", clock)
    assert utilization.measured_peak(torch.float32) == 2 * 16**3 / 2.0
