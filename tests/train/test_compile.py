"""--compile: what cannot be compiled is said in one line and trained as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossia.model.decoder import Layer
from ossia.train.runs.pretrain import Run
from ossia.train.settings import Settings


def trained(settings: Settings, out: Path, *, compiled: bool) -> Run:
    run = Run.start(settings, out)
    if compiled:
        run.compile()
    run.train()
    return run


def test_what_cannot_be_compiled_is_trained_as_it_is(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_):
        raise RuntimeError("no compiler is here\nand more")

    monkeypatch.setattr("ossia.model.decoder._compiled", fail)
    settings = replace(tiny, steps=6)
    run = trained(settings, tmp_path / "compiled", compiled=True)
    plain = trained(settings, tmp_path / "plain", compiled=False)
    (note,) = run.notes
    assert (
        note == "the layers are not compiled, which would be faster (no compiler is here and more)"
    )
    weights = plain.decoder.state_dict()
    assert all(torch.equal(value, weights[n]) for n, value in run.decoder.state_dict().items())
    assert not run.wants_compiler(None)


def test_a_resumed_run_compiles_as_it_did(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("ossia.model.decoder._compiled", lambda function: function)
    out = tmp_path / "out"
    run = Run.start(tiny, out)
    assert not run.wants_compiler(None)  # a new run on a CPU
    assert run.wants_compiler(True)
    run.compile()
    assert all(isinstance(layer, Layer) and layer.compiled for layer in run.decoder.layers)
    run.train(stopped=lambda: run.trainer.progress.step == 2)
    run.close()
    sessions = json.loads((out / "training" / "sessions.json").read_text())["sessions"]
    assert sessions[0]["compiled"] is True
    again = Run.resume(out)
    assert again.wants_compiler(None)
    assert not again.wants_compiler(False)
