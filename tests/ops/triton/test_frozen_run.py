"""A run of `ossia finetune --lora` as on a GPU: what is loaded, refused and saved. Without a card,
the definition computes on the CPU.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from ossia import checkpoint
from ossia.adapt import adapters, lora
from ossia.errors import OssiaError
from ossia.ops.mxfp4 import MXFP4
from ossia.ops.triton.training import TritonTraining
from ossia.train.corpus.packing import Rows, nats_per_token
from ossia.train.evaluate import loss_of
from ossia.train.runs.finetune import FineTuning
from ossia.train.settings import FineTuneSettings


@pytest.fixture
def like_a_gpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if device.type != "cuda":
        launch = import_module("ossia.ops.triton.launch")
        monkeypatch.setattr(launch, "INTERPRETED", False)  # which would take minutes
        monkeypatch.setattr(lora, "_on_gpu", lambda given: given is not None)
        monkeypatch.setattr(lora, "for_device", lambda _: TritonTraining())
    return device


@pytest.mark.parametrize(("merge", "mxfp4_steps"), [(False, 0), (True, 2)])
def test_what_is_saved_is_what_was_trained(
    like_a_gpu: torch.device,
    merge: bool,
    mxfp4_steps: int,
    base: Path,
    settings: FineTuneSettings,
    tmp_path: Path,
) -> None:
    settings = replace(settings, lora=True, rank=4, alpha=8.0, learning_rate=2e-2, merge=merge)
    settings = replace(settings, mxfp4_steps=mxfp4_steps)
    out = tmp_path / "out"
    run = FineTuning.start(replace(settings, steps=8, recompute=True), out, like_a_gpu)
    assert run.decoder.dtype is torch.bfloat16  # of the embedding, as stored
    held = {name: type(update.base) for name, update in lora.updates(run.decoder)}
    assert held["layers.0.feedforward.down"] is MXFP4
    held_out = Rows(out / "training/held_out", settings.length)
    assert run.train()
    record = run.export()
    loss = record["held_out_loss"]
    assert loss["as_trained"] < 0.9 * loss["before"]
    assert loss["as_saved"] == pytest.approx(loss["as_trained"], rel=0.1 if merge else 1e-5)
    assert run.decoder.device.type == like_a_gpu.type
    assert merge == (out / "model.safetensors").exists()
    if merge:
        assert checkpoint.read_config(out) == checkpoint.read_config(base)
    again = lora.load_base(base)  # on the CPU
    adapters.load(again, out / "adapter")
    assert nats_per_token(loss_of(again.eval()), held_out) == pytest.approx(
        loss["as_trained"], 1e-4
    )


def test_a_card_that_is_too_small_is_one_line(
    settings: FineTuneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100_000, 10**9))
    settings = replace(settings, lora=True)
    with pytest.raises(OssiaError) as refused:
        FineTuning.start(settings, tmp_path / "out", torch.device("cuda:0"))
    line = str(refused.value)
    assert "\n" not in line
    assert "0.1 MB are free on cuda:0, at least 0." in line
    assert "too little: use fewer --targets or a lower --rank, or use --recompute" in line
    assert not (tmp_path / "out").exists()
